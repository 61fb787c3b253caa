// Copies that bypass the caches: for large results that nobody reads again soon, ordinary stores would first fetch every line.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "view.hpp"

namespace tensorfact {

// Copies `n` elements; whole cache lines of `to` are written past the caches. Call `stream_done` before another thread reads them.
template <class T>
void stream_copy(T* __restrict to, const T* __restrict from, index n) {
#if defined(__SSE2__)
    constexpr index line = 64 / static_cast<index>(sizeof(T));
    const auto misfit = static_cast<index>(reinterpret_cast<std::uintptr_t>(to) % 64 / sizeof(T));
    index i = std::min(n, misfit == 0 ? index{0} : line - misfit);
    for (index j = 0; j < i; ++j) to[j] = from[j];
    for (; i + line <= n; i += line) {
#if defined(__AVX512F__)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
#elif defined(__AVX__)
        for (index part = 0; part < line; part += line / 2)
            _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i + part),
                                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i + part)));
#else
        for (index part = 0; part < line; part += line / 4)
            _mm_stream_si128(reinterpret_cast<__m128i*>(to + i + part), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i + part)));
#endif
    }
    for (; i < n; ++i) to[i] = from[i];
#else
    std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
#endif
}

// Writes one vector of 16, 32 or 64 bytes past the caches, `to` aligned to its size.
template <class V>
void stream_store(void* to, const V& v) {
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) return _mm512_stream_si512(static_cast<__m512i*>(to), (__m512i)v);
#endif
#if defined(__AVX__)
    if constexpr (sizeof(V) == 32) return _mm256_stream_si256(static_cast<__m256i*>(to), (__m256i)v);
#endif
#if defined(__SSE2__)
    if constexpr (sizeof(V) == 16) return _mm_stream_si128(static_cast<__m128i*>(to), (__m128i)v);
#endif
    std::memcpy(to, &v, sizeof(V));
}

inline void stream_done() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

}  // namespace tensorfact
