#pragma once

namespace airi {

// Adds these members of another to one's own: how everything here is summed up that several replicas, threads
// or stretches of time have counted.
template <class Counts, class... Members>
void add_members(Counts& total, const Counts& other, Members Counts::*... members) {
  ((total.*members += other.*members), ...);
}

}  // namespace airi
