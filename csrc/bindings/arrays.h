#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <span>
#include <string>

namespace airi::bindings {

namespace detail {

inline std::string shape_of(const pybind11::array& a) {
  std::string text = "[";
  for (pybind11::ssize_t i = 0; i < a.ndim(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(a.shape(i));
  }
  return text + "]";
}

}  // namespace detail

// The elements of an aligned C-contiguous array of exactly T. Never copies, never converts. Throws TypeError
// naming the argument, what is wanted and what was found; never the data.
template <class T>
std::span<const T> as_span(const char* name, const pybind11::array& a) {
  const bool fits =
      pybind11::isinstance<pybind11::array_t<T>>(a) && (a.flags() & pybind11::array::c_style) != 0;
  if (!fits) {
    throw pybind11::type_error(std::string(name) + " must be a C-contiguous " +
                               std::string(pybind11::str(pybind11::dtype::of<T>())) + " array, got " +
                               std::string(pybind11::str(a.dtype())) + " " + detail::shape_of(a));
  }
  if (reinterpret_cast<std::uintptr_t>(a.data()) % alignof(T) != 0) {
    throw pybind11::type_error(std::string(name) + " must be aligned to its elements");
  }
  return {static_cast<const T*>(a.data()), static_cast<std::size_t>(a.size())};
}

// As as_span, for an array that is written to.
template <class T>
std::span<T> as_writable_span(const char* name, pybind11::array& a) {
  const std::span<const T> elements = as_span<T>(name, a);
  if (!a.writeable()) throw pybind11::type_error(std::string(name) + " must be writable");
  return {static_cast<T*>(a.mutable_data()), elements.size()};
}

}  // namespace airi::bindings
