// BLAS and LAPACK as a table of function pointers, filled by bind/lapack.cpp from SciPy's capsules. Nothing is linked.
//
// Every INTEGER scalar is passed as a 64-bit variable: on little-endian machines a routine built with 32-bit integers reads the low
// half and one with 64-bit integers all of it, so one declaration serves both. Outputs start at 0 and are read as their low 32 bits.
// This is the only header that knows Fortran's column order: the helpers below are row-major.
#pragma once

#include <complex>
#include <cstdint>
#include <limits>

#include "view.hpp"
#include "workspace.hpp"

namespace tensorfact::lapack {

using integer = std::int64_t;

template <class T>
struct Routines {
    using R = real_t<T>;
    void (*gemm)(char*, char*, integer*, integer*, integer*, T*, T*, integer*, T*, integer*, T*, T*, integer*) = nullptr;
    void (*herk)(char*, char*, integer*, integer*, R*, T*, integer*, R*, T*, integer*) = nullptr;  // syrk for real T
    void (*trmm)(char*, char*, char*, char*, integer*, integer*, T*, T*, integer*, T*, integer*) = nullptr;
    void (*potrf)(char*, integer*, T*, integer*, integer*) = nullptr;
    void (*trtri)(char*, char*, integer*, T*, integer*, integer*) = nullptr;
    std::conditional_t<is_complex<T>,
                       void (*)(char*, char*, integer*, T*, integer*, R*, T*, integer*, R*, integer*, integer*, integer*, integer*),
                       void (*)(char*, char*, integer*, T*, integer*, R*, T*, integer*, integer*, integer*, integer*)>
        heevd = nullptr;  // syevd for real T
};

struct Table {
    Routines<float> s;
    Routines<double> d;
    Routines<std::complex<float>> c;
    Routines<std::complex<double>> z;
    int int_bits = 0;  // 0: not loaded
};

inline Table& table() {
    static Table instance;
    return instance;
}

template <class T>
const Routines<T>& routines() {
    Table& t = table();
    require(t.int_bits != 0, "BLAS is not loaded: call load_blas() first");
    if constexpr (std::is_same_v<T, float>) return t.s;
    else if constexpr (std::is_same_v<T, double>) return t.d;
    else if constexpr (std::is_same_v<T, std::complex<float>>) return t.c;
    else return t.z;
}

inline integer checked(index value) {
    require(table().int_bits == 64 || value <= std::numeric_limits<std::int32_t>::max(),
            "dimension must fit the 32-bit integers of this BLAS, got ", value);
    return value;
}

template <class T>
T* fortran(const T* p) {
    return const_cast<T*>(p);  // Fortran prototypes know no const; these arguments are read only
}

// C = alpha op(A) op(B) + beta C, row-major; op is 'N' (as is), 'T' (transpose) or 'C' (conjugate transpose); C is m x n.
template <class T>
void gemm(char op_a, char op_b, index m, index n, index k, T alpha, const T* a, index lda, const T* b, index ldb, T beta, T* c,
          index ldc) {
    if (m == 0 || n == 0) return;
    integer m_ = checked(m), n_ = checked(n), k_ = checked(k), lda_ = checked(lda), ldb_ = checked(ldb), ldc_ = checked(ldc);
    routines<T>().gemm(&op_b, &op_a, &n_, &m_, &k_, &alpha, fortran(b), &ldb_, fortran(a), &lda_, &beta, c, &ldc_);
}

// Row-major lower triangle of C (n x n) = A^H A + beta C (faster by a tenth than the upper one in OpenBLAS). `a` is row-major k x n when `rows`, giving exactly that. Otherwise it
// holds A^T, row-major n x k, and C receives the complex conjugate: BLAS can conjugate only where it transposes.
template <class T>
void herk(bool rows, index n, index k, const T* a, index lda, real_t<T> beta, T* c, index ldc) {
    if (n == 0) return;
    char upper = 'U', op = rows ? 'N' : is_complex<T> ? 'C' : 'T';
    real_t<T> alpha = 1;
    integer n_ = checked(n), k_ = checked(k), lda_ = checked(lda), ldc_ = checked(ldc);
    routines<T>().herk(&upper, &op, &n_, &k_, &alpha, fortran(a), &lda_, &beta, c, &ldc_);
}

// Row-major G = L L^H with L lower triangular, in place in the lower triangle. Returns LAPACK's info: 0 means success.
template <class T>
int potrf(index n, T* g, index ldg) {
    if (n == 0) return 0;
    char upper = 'U';
    integer n_ = checked(n), ldg_ = checked(ldg), info = 0;
    routines<T>().potrf(&upper, &n_, g, &ldg_, &info);
    return static_cast<std::int32_t>(info);
}

// Row-major L := L^-1, lower triangular n x n, in place. Returns LAPACK's info: 0 means success.
template <class T>
int trtri(index n, T* l, index ldl) {
    if (n == 0) return 0;
    char upper = 'U', no = 'N';
    integer n_ = checked(n), ldl_ = checked(ldl), info = 0;
    routines<T>().trtri(&upper, &no, &n_, l, &ldl_, &info);
    return static_cast<std::int32_t>(info);
}

// Row-major Y (m x n) := Y L^H with L lower triangular n x n.
template <class T>
void trmm_right_adjoint(index m, index n, const T* l, index ldl, T* y, index ldy) {
    if (m == 0 || n == 0) return;
    char left = 'L', upper = 'U', adjoint = 'C', no = 'N';
    T one = 1;
    integer m_ = checked(m), n_ = checked(n), ldl_ = checked(ldl), ldy_ = checked(ldy);
    routines<T>().trmm(&left, &upper, &adjoint, &no, &n_, &m_, &one, fortran(l), &ldl_, y, &ldy_);
}

// Eigenvalues, ascending, of the Hermitian matrix in the row-major upper triangle of a (n x n), and over it its eigenvectors: row j
// holds the conjugate of the j-th. Returns LAPACK's info: 0 means success.
template <class T>
int heevd(index n, T* a, real_t<T>* values, Workspace& ws) {
    if (n == 0) return 0;
    using R = real_t<T>;
    char vectors = 'V', lower = 'L';
    integer n_ = checked(n), info = 0, query = -1, first_i = 0;
    T first{};
    [[maybe_unused]] R first_r{};
    const auto call = [&](T* work, integer* lwork, [[maybe_unused]] R* rwork, [[maybe_unused]] integer* lrwork, integer* iwork, integer* liwork) {
        if constexpr (is_complex<T>)
            routines<T>().heevd(&vectors, &lower, &n_, a, &n_, values, work, lwork, rwork, lrwork, iwork, liwork, &info);
        else routines<T>().heevd(&vectors, &lower, &n_, a, &n_, values, work, lwork, iwork, liwork, &info);
    };
    call(&first, &query, &first_r, &query, &first_i, &query);
    if (static_cast<std::int32_t>(info) != 0) return static_cast<std::int32_t>(info);
    // A size comes back as a floating-point number: one unit of rounding more is enough for a float32 answer too.
    const auto size = [](R answer) { return static_cast<index>(static_cast<double>(answer) * (1 + 1e-6)) + 1; };
    integer lwork = checked(size(std::real(first))), lrwork = is_complex<T> ? checked(size(first_r)) : 0;
    integer liwork = static_cast<std::int32_t>(first_i);
    Workspace::Frame frame(ws);
    T* work = frame.take<T>(lwork);
    R* rwork = frame.take<R>(lrwork);
    integer* iwork = frame.take<integer>(liwork);
    info = 0;
    call(work, &lwork, rwork, &lrwork, iwork, &liwork);
    return static_cast<std::int32_t>(info);
}

}  // namespace tensorfact::lapack
