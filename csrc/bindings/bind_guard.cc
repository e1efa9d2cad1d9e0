#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/operators.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/check.h"
#include "bindings/arrays.h"
#include "guard/automaton.h"
#include "guard/scanner.h"
#include "guard/token_masks.h"

// Content rules: patterns, scanners of streams, masks of tokens.

namespace py = pybind11;

namespace airi::bindings {
namespace {

using guard::Automaton;
using guard::MaskState;
using guard::Match;
using guard::Pattern;
using guard::Scanner;
using guard::TokenMasks;

// Below that many bytes giving up the GIL takes longer than the scan.
constexpr std::size_t kReleaseAt = 1024;

std::span<const std::uint8_t> bytes_of(const py::bytes& data) {
  const auto view = static_cast<std::string_view>(data);
  return {reinterpret_cast<const std::uint8_t*>(view.data()), view.size()};
}

py::list rows_of(const std::vector<Match>& matches) {
  py::list rows(matches.size());
  for (std::size_t i = 0; i < matches.size(); ++i) {
    rows[i] = py::make_tuple(static_cast<std::int32_t>(matches[i].pattern), matches[i].start, matches[i].end);
  }
  return rows;
}

Pattern make_pattern(const std::variant<py::bytes, std::string>& text, std::string name, bool literal,
                     bool ignore_case, bool word_boundary, guard::Validator validator, bool holds) {
  const bool is_bytes = std::holds_alternative<py::bytes>(text);
  if (is_bytes && !literal) {
    throw InvalidArgument("pattern '" + name +
                          "': a regular expression is a str; only a literal may be bytes");
  }
  return {.text = is_bytes ? std::string(std::get<py::bytes>(text)) : std::get<std::string>(text),
          .name = std::move(name),
          .literal = literal,
          .ignore_case = ignore_case,
          .word_boundary = word_boundary,
          .validator = validator,
          .holds = holds};
}

std::shared_ptr<Automaton> make_automaton(const std::vector<Pattern>& patterns, std::int32_t max_states,
                                          std::int32_t max_groups) {
  const py::gil_scoped_release nogil;
  return std::make_shared<Automaton>(
      patterns, guard::AutomatonOptions{.max_states = max_states, .max_groups = max_groups});
}

void feed(Scanner& self, const py::bytes& data, std::vector<Match>& matches) {
  const std::span<const std::uint8_t> bytes = bytes_of(data);
  if (bytes.size() < kReleaseAt) {
    self.feed(bytes, matches);
    return;
  }
  const py::gil_scoped_release nogil;
  self.feed(bytes, matches);
}

py::list scan(const std::shared_ptr<Automaton>& automaton, const py::bytes& data) {
  Scanner scanner(automaton);
  std::vector<Match> matches;
  feed(scanner, data, matches);
  scanner.finish(matches);
  return rows_of(matches);
}

void bind_automaton(py::module_& m) {
  using namespace pybind11::literals;
  py::native_enum<guard::Validator>(m, "Validator", "enum.Enum")
      .value("NONE", guard::Validator::kNone)
      .value("LUHN", guard::Validator::kLuhn)
      .value("IBAN", guard::Validator::kIban)
      .finalize();
  py::class_<Pattern>(m, "Pattern", "One rule's text and how it is read.")
      .def(py::init(&make_pattern), "text"_a, py::kw_only(), "name"_a, "literal"_a = false,
           "ignore_case"_a = false, "word_boundary"_a = false, "validator"_a = guard::Validator::kNone,
           "holds"_a = true)
      .def_readonly("name", &Pattern::name);
  py::class_<Automaton, std::shared_ptr<Automaton>>(m, "Automaton", "Many patterns as tables.")
      .def(py::init(&make_automaton), "patterns"_a, py::kw_only(),
           "max_states"_a = guard::AutomatonOptions{}.max_states,
           "max_groups"_a = guard::AutomatonOptions{}.max_groups)
      .def("scan", &scan, "data"_a)
      .def("canonical", [](const Automaton& self) { return py::bytes(self.canonical()); })
      .def_property_readonly("num_patterns", [](const Automaton& self) { return self.patterns().size(); })
      .def_property_readonly("num_states", &Automaton::num_states)
      .def_property_readonly("num_groups", [](const Automaton& self) { return self.groups().size(); });
}

void bind_scanner(py::module_& m) {
  using namespace pybind11::literals;
  py::class_<Scanner>(m, "Scanner", "Finds matches in a text that comes in pieces.")
      .def(py::init([](const std::shared_ptr<Automaton>& automaton) {
             return std::make_unique<Scanner>(automaton);
           }),
           "automaton"_a.none(false))
      .def(
          "feed",
          [](Scanner& self, const py::bytes& data) {
            std::vector<Match> matches;
            feed(self, data, matches);
            return rows_of(matches);
          },
          "data"_a)
      .def("finish",
           [](Scanner& self) {
             std::vector<Match> matches;
             self.finish(matches);
             return rows_of(matches);
           })
      .def("reset", &Scanner::reset)
      .def_property_readonly("open_start", &Scanner::open_start)
      .def_property_readonly("position", &Scanner::position)
      .def_property_readonly("num_threads", &Scanner::num_threads)
      .def("check_invariants", &Scanner::check_invariants);
}

MaskState after(const TokenMasks& self, const py::bytes& text) {
  const std::span<const std::uint8_t> bytes = bytes_of(text);
  if (bytes.size() < kReleaseAt) return self.after(bytes);
  const py::gil_scoped_release nogil;
  return self.after(bytes);
}

std::size_t fill(TokenMasks& self, const MaskState& state, py::array& out) {
  const std::span<std::uint32_t> words = as_writable_span<std::uint32_t>("out", out);
  const py::gil_scoped_release nogil;
  return self.fill(state, words);
}

void bind_masks(py::module_& m) {
  using namespace pybind11::literals;
  py::class_<MaskState>(m, "MaskState", "Where an output stands for its masks. A value.")
      .def(py::self == py::self)
      .def("__hash__", [](const MaskState& self) { return py::hash(py::bytes(TokenMasks::serialize(self))); })
      .def("__bytes__", [](const MaskState& self) { return py::bytes(TokenMasks::serialize(self)); });
  py::class_<TokenMasks>(m, "TokenMasks", "Which next tokens would complete a match.")
      .def(py::init([](const std::shared_ptr<Automaton>& automaton, const std::vector<std::string>& tokens,
                       std::size_t cache_bytes, bool text) {
             const py::gil_scoped_release nogil;
             return std::make_unique<TokenMasks>(
                 automaton, tokens, guard::TokenMasksOptions{.cache_bytes = cache_bytes, .text = text});
           }),
           "automaton"_a.none(false), "tokens"_a, py::kw_only(),
           "cache_bytes"_a = guard::TokenMasksOptions{}.cache_bytes, "text"_a = false)
      .def("after", &after, "text"_a = py::bytes())
      .def(
          "advance",
          [](const TokenMasks& self, const MaskState& state, std::int32_t token) {
            return self.advance(state, guard::TokenId{token});
          },
          "state"_a, "token"_a)
      .def("fill", &fill, "state"_a, "out"_a)
      .def("ends_match", &TokenMasks::ends_match, "state"_a)
      .def(
          "restore",
          [](const TokenMasks& self, const py::bytes& data) { return self.restore(bytes_of(data)); },
          "data"_a)
      .def_property_readonly("vocab_size", &TokenMasks::vocab_size)
      .def_property_readonly("num_words", &TokenMasks::num_words)
      .def_property_readonly("num_cached", &TokenMasks::num_cached);
}

}  // namespace

void bind_guard(py::module_& m) {
  auto guard = m.def_submodule("guard", "Content rules: patterns, scanners of streams, masks of tokens.");
  bind_automaton(guard);
  bind_scanner(guard);
  bind_masks(guard);
}

}  // namespace airi::bindings
