// expect: lpo Tape: nodes capture Vars, pointers and numbers only
// SPDX-License-Identifier: MIT
// A backward function that would have to be destroyed.
#include <vector>

#include <lpo/autograd/tape.hpp>

void record(lpo::Tape<lpo::Cpu>& tape, lpo::Slot* slot, std::vector<float> values) {
  tape.push(tape.mark(), slot, [values](lpo::Tape<lpo::Cpu>&) {});
}
