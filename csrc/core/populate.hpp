// Pages for large results.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "view.hpp"

namespace tensorfact {

// Brings the pages of a large result into memory in one go, where Linux can (5.14): one fault for each costs twice as much, as much as
// half of a thin chain. Each thread does so for the part that it writes. Huge pages were tried: fast where they are at hand, a stall of
// 70 ms where the system must find them.
inline void populate(void* data, index bytes) {
#if defined(__linux__)
    constexpr std::uintptr_t page = 4096;
    const auto begin = reinterpret_cast<std::uintptr_t>(data) / page * page;
    const auto end = (reinterpret_cast<std::uintptr_t>(data) + static_cast<std::uintptr_t>(bytes) + page - 1) / page * page;
    constexpr int populate_write = 23;  // MADV_POPULATE_WRITE, which older headers lack
    ::madvise(reinterpret_cast<void*>(begin), end - begin, populate_write);
#else
    (void)data, (void)bytes;
#endif
}

inline constexpr index populate_from = index{1} << 20;  // bytes; smaller results come from memory that was used before

}  // namespace tensorfact
