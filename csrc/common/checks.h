#pragma once
// Refusing bad input with words, in code that knows nothing of torch. Both torch and pybind11 hand a std::runtime_error
// on as Python's RuntimeError.
#include <cstdint>
#include <sstream>
#include <stdexcept>

namespace diva {

template <typename... Words>
void check(bool is_good, const Words&... words) {
  if (is_good) return;
  std::ostringstream message;
  (message << ... << words);
  throw std::runtime_error(message.str());
}

// CSR offsets [last + 1]: 0 at the start, `total` at the end, never falling. Says which entry is wrong.
void check_offsets(const int64_t* offsets, int64_t last, int64_t total, const char* op, const char* name);

}  // namespace diva
