// Errors of the core. `std::invalid_argument` becomes ValueError, `LinAlgError` numpy.linalg.LinAlgError (bind/module.cpp).
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace tensorfact {

struct LinAlgError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The message is put together only when the requirement fails, so a check costs one branch.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
    if (condition) return;
    std::ostringstream message;
    (message << ... << parts);
    throw std::invalid_argument(message.str());
}

}  // namespace tensorfact
