// A small matrix along the tubes of an array, faces first on the other side: out[u][i] = sum_k Z[u, k] x[i, k].
//
// A tube has p <= 16 numbers. As many tubes as a vector has lanes are loaded, turned in registers so that each vector holds one
// position of all of them, and multiplied by Z: no transposed copy exists, and the transform costs less than moving the numbers.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <utility>

#include "tiled.hpp"
#include "view.hpp"

namespace tensorfact {

inline constexpr index max_tube = 16;

namespace tubes {

using tiled::lanes;
using tiled::load;
using tiled::store;
using tiled::Vector;

// The first `count` <= lanes numbers and zeros.
template <class T>
Vector<T> load_some(const T* p, index count) {
    if (count >= lanes<T>) return load(p);
    T part[lanes<T>] = {};
    tiled::copy_part(part, p, count);
    return load(part);
}

template <class T>
void store_some(T* p, const Vector<T>& v, index count) {
    if (count >= lanes<T>) return store(p, v);
    T part[lanes<T>];
    store(part, v);
    tiled::copy_part(p, part, count);
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define TENSORFACT_SHUFFLE 1
#endif
#endif

#if defined(TENSORFACT_SHUFFLE)
inline constexpr bool shuffles = true;

template <class T, index... I>
void unzip(Vector<T> a, Vector<T> b, Vector<T>& even, Vector<T>& odd, std::integer_sequence<index, I...>) {
    even = __builtin_shufflevector(a, b, 2 * I...);
    odd = __builtin_shufflevector(a, b, 2 * I + 1 ...);
}
template <class T, index... I>
void zip(Vector<T> even, Vector<T> odd, Vector<T>& a, Vector<T>& b, std::integer_sequence<index, I...>) {
    constexpr index w = lanes<T>;
    a = __builtin_shufflevector(even, odd, (I / 2 + I % 2 * w)...);
    b = __builtin_shufflevector(even, odd, (I / 2 + w / 2 + I % 2 * w)...);
}

// v: P vectors of consecutive numbers, `lanes` tubes in all -> v[k] has number k of each tube. P is a power of two.
template <class T, index P>
void split(Vector<T>* v) {
    if constexpr (P > 1) {
        constexpr auto all = std::make_integer_sequence<index, lanes<T>>{};
        Vector<T> half[P];
        for (index i = 0; i < P / 2; ++i) unzip<T>(v[2 * i], v[2 * i + 1], half[i], half[P / 2 + i], all);
        split<T, P / 2>(half);
        split<T, P / 2>(half + P / 2);
        for (index i = 0; i < P / 2; ++i) {
            v[2 * i] = half[i];
            v[2 * i + 1] = half[P / 2 + i];
        }
    }
}

// The way back.
template <class T, index P>
void join(Vector<T>* v) {
    if constexpr (P > 1) {
        constexpr auto all = std::make_integer_sequence<index, lanes<T>>{};
        Vector<T> half[P];
        for (index i = 0; i < P / 2; ++i) {
            half[i] = v[2 * i];
            half[P / 2 + i] = v[2 * i + 1];
        }
        join<T, P / 2>(half);
        join<T, P / 2>(half + P / 2);
        for (index i = 0; i < P / 2; ++i) zip<T>(half[i], half[P / 2 + i], v[2 * i], v[2 * i + 1], all);
    }
}
#else
inline constexpr bool shuffles = false;
template <class T, index P>
void split(Vector<T>*) {}
template <class T, index P>
void join(Vector<T>*) {}
#endif

// P is p where that is known to the compiler, else 0.
template <class T, index P>
struct Group {
    static constexpr index room = P ? P : max_tube;
    index p;
    Vector<T> v[room];

    index size() const { return P ? P : p; }

    // `count` <= lanes whole tubes of p numbers each, one after the other.
    void load_tubes(const T* x, index count) {
        constexpr index w = lanes<T>;
        if constexpr (shuffles && P > 0) {
            if (count == w) {
                for (index k = 0; k < P; ++k) v[k] = load(x + k * w);
            } else {
                T part[P * w] = {};
                std::memcpy(part, x, static_cast<std::size_t>(count * P) * sizeof(T));
                for (index k = 0; k < P; ++k) v[k] = load(part + k * w);
            }
            split<T, P>(v);
        } else {
            T part[room * w] = {};
            for (index i = 0; i < count; ++i)
                for (index k = 0; k < size(); ++k) part[k * w + i] = x[i * size() + k];
            for (index k = 0; k < size(); ++k) v[k] = load(part + k * w);
        }
    }

    void store_tubes(T* x, index count) {
        constexpr index w = lanes<T>;
        T part[room * w];
        if constexpr (shuffles && P > 0) {
            join<T, P>(v);
            if (count == w) {
                for (index k = 0; k < P; ++k) store(x + k * w, v[k]);
            } else {
                for (index k = 0; k < P; ++k) store(part + k * w, v[k]);
                std::memcpy(x, part, static_cast<std::size_t>(count * P) * sizeof(T));
            }
        } else {
            for (index k = 0; k < size(); ++k) store(part + k * w, v[k]);
            for (index i = 0; i < count; ++i)
                for (index k = 0; k < size(); ++k) x[i * size() + k] = part[k * w + i];
        }
    }

    // One line of numbers for each position, `step` apart.
    void load_lines(const T* x, index step, index count) {
        for (index k = 0; k < size(); ++k) v[k] = load_some(x + k * step, count);
    }

    // Hands u and number u of z v, or of init + z v, to `sink`; a few sums at a time hide the latency of each.
    template <class Sink>
    void multiply(const T* z, const T* init, index step, index count, Sink&& sink) const {
        constexpr index deep = P >= 8 ? 2 : 4;
        const index p_ = size();
        index u = 0;
        for (; u + deep <= p_; u += deep) {
            Vector<T> s[deep];
            for (index i = 0; i < deep; ++i) s[i] = init ? load_some(init + (u + i) * step, count) : Vector<T>{};
            for (index k = 0; k < p_; ++k)
                for (index i = 0; i < deep; ++i) s[i] += z[(u + i) * p_ + k] * v[k];
            for (index i = 0; i < deep; ++i) sink(u + i, s[i]);
        }
        for (; u < p_; ++u) {
            Vector<T> s = init ? load_some(init + u * step, count) : Vector<T>{};
            for (index k = 0; k < p_; ++k) s += z[u * p_ + k] * v[k];
            sink(u, s);
        }
    }
};

// x holds `rows` rows: of `columns` tubes if `last`, else of p lines of `columns` numbers. Face u goes to out + u * face, rows after
// one another. Returns whether all of x is finite.
template <class T, index P>
bool to_faces(const T* x, index rows, index columns, index p, bool last, const T* z, T* out, index face) {
    constexpr index w = lanes<T>;
    Group<T, P> g;
    g.p = p;
    Vector<T> seen{};  // becomes NaN with the first number that is not finite
    const index runs = last ? 1 : rows, length = last ? rows * columns : columns;
    for (index r = 0; r < runs; ++r)
        for (index i = 0; i < length; i += w) {
            const index count = std::min(w, length - i);
            if (last) g.load_tubes(x + i * p, count);
            else g.load_lines(x + r * p * columns + i, columns, count);
            for (index k = 0; k < g.size(); ++k) seen += T(0) * g.v[k];
            T* const to = out + r * columns + i;
            g.multiply(z, nullptr, 0, count, [&](index u, const Vector<T>& s) { store_some(to + u * face, s, count); });
        }
    T each[w];
    store(each, seen);
    bool finite = true;
    for (index i = 0; i < w; ++i) finite = finite && each[i] == T(0);
    return finite;
}

// The way back; `bias` (p, columns), where there is one, is added to every row and only without `last`.
template <class T, index P>
void from_faces(const T* faces, index face, index rows, index columns, index p, bool last, const T* z, const T* bias, T* y) {
    constexpr index w = lanes<T>;
    Group<T, P> g, back;
    g.p = back.p = p;
    const index runs = last ? 1 : rows, length = last ? rows * columns : columns;
    for (index r = 0; r < runs; ++r)
        for (index i = 0; i < length; i += w) {
            const index count = std::min(w, length - i);
            g.load_lines(faces + r * columns + i, face, count);
            const T* const init = bias ? bias + i : nullptr;
            if (last) {
                g.multiply(z, init, columns, count, [&](index u, const Vector<T>& s) { back.v[u] = s; });
                back.store_tubes(y + i * p, count);
            } else {
                T* const to = y + r * p * columns + i;
                g.multiply(z, init, columns, count, [&](index u, const Vector<T>& s) { store_some(to + u * columns, s, count); });
            }
        }
}

}  // namespace tubes

// Where the compiler may know p: powers of two.
template <class F>
decltype(auto) with_tube(index p, F&& f) {
    switch (p) {
        case 2: return f(std::integral_constant<index, 2>{});
        case 4: return f(std::integral_constant<index, 4>{});
        case 8: return f(std::integral_constant<index, 8>{});
        case 16: return f(std::integral_constant<index, 16>{});
        default: return f(std::integral_constant<index, 0>{});
    }
}

}  // namespace tensorfact
