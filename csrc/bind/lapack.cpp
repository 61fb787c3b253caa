// Fills the BLAS/LAPACK table from the `__pyx_capi__` dictionaries of scipy.linalg.cython_blas and cython_lapack.
//
// Three checks stand between a capsule and a crash: its name, which is its C signature, must have the expected shape; a probe finds
// the width of its integers (the name alone cannot tell: `blas_int` may be either); a small factorisation in every type must be right.
#include "../core/lapack.hpp"

#include <cctype>
#include <cmath>
#include <mutex>
#include <string_view>

#include "../core/dense.hpp"
#include "convert.hpp"

namespace tensorfact::bind {
namespace {

// One letter for each argument type: h char, I integer of unknown width, s d c z the numbers; '?' anything else.
char letter(std::string type) {
    const auto drop = [&](std::string_view word) {
        for (auto at = type.find(word); at != std::string::npos; at = type.find(word)) type.erase(at, word.size());
    };
    drop("const ");
    drop(" ");
    for (const char* name : {"cython_blas_", "cython_lapack_"})
        if (const auto at = type.find(name); at != std::string::npos) type.erase(0, at + std::string_view(name).size());
    for (const auto& [spelling, code] : {std::pair{"char*", 'h'}, {"int*", 'I'}, {"blas_int*", 'I'}, {"int32_t*", 'I'},
                                         {"int64_t*", 'I'}, {"s*", 's'}, {"float*", 's'}, {"d*", 'd'}, {"double*", 'd'}, {"c*", 'c'},
                                         {"__pyx_t_float_complex*", 'c'}, {"z*", 'z'}, {"__pyx_t_double_complex*", 'z'}})
        if (type == spelling) return code;
    return '?';
}

// "void (char *, int *, ...)" -> "hI..."; "?" when it is not a void function.
std::string parse_signature(std::string_view text) {
    const auto open = text.find('('), close = text.rfind(')');
    if (text.substr(0, 4) != "void" || open == text.npos || close == text.npos || close < open) return "?";
    std::string codes;
    std::string_view args = text.substr(open + 1, close - open - 1);
    for (;;) {
        const auto comma = args.find(',');
        codes += letter(std::string(args.substr(0, comma)));
        if (comma == args.npos) return codes;
        args.remove_prefix(comma + 1);
    }
}

template <class F>
void fetch(F*& pointer, const py::dict& capi, const std::string& name, const std::string& expected) {
    require(capi.contains(name), name, " is missing from SciPy's capsules");
    const py::object item = capi[name.c_str()];
    require(PyCapsule_CheckExact(item.ptr()), name, " is not a capsule");
    const char* signature = PyCapsule_GetName(item.ptr());
    require(signature != nullptr, name, " has no signature");
    require(parse_signature(signature) == expected, name, " has an unexpected signature: ", signature);
    pointer = reinterpret_cast<F*>(PyCapsule_GetPointer(item.ptr(), signature));
    if (!pointer) throw py::error_already_set();
}

template <class T>
void fetch_all(lapack::Routines<T>& to, char t, const py::dict& blas, const py::dict& lapack) {
    const char r = t == 'c' ? 's' : t == 'z' ? 'd' : t;
    const auto expand = [&](std::string pattern) {
        for (char& x : pattern) x = x == 'T' ? t : x == 'R' ? r : x;
        return pattern;
    };
    const std::string p(1, t);
    fetch(to.gemm, blas, p + "gemm", expand("hhIIITTITITTI"));
    fetch(to.herk, blas, p + (is_complex<T> ? "herk" : "syrk"), expand("hhIIRTIRTI"));
    fetch(to.trmm, blas, p + "trmm", expand("hhhhIITTITI"));
    fetch(to.potrf, lapack, p + "potrf", expand("hITII"));
    fetch(to.trtri, lapack, p + "trtri", expand("hhITII"));
    fetch(to.heevd, lapack, p + (is_complex<T> ? "heevd" : "syevd"), expand(is_complex<T> ? "hhITIRTIRIIII" : "hhITIRTIIII"));
}

// 32 or 64. Safe with either width, because the scalars are 64 bits: a 32-bit routine overwrites the low half of info only.
int probe_width(const lapack::Routines<double>& d) {
    double a[] = {4, 2, 2, 3};
    lapack::integer n = 2, ld = 2, info = 0x5A5A5A5A00000007;
    char lower = 'L';
    d.potrf(&lower, &n, a, &ld, &info);
    require(info == 0 || info == 0x5A5A5A5A00000000, "dpotrf answers the width probe with ", info);
    return info == 0 ? 64 : 32;
}

// Q R = Y, Q^H Q = I and Y^H (Y Q) = R^H R Q on a 3 x 2 matrix: every routine takes part.
template <class T>
void self_test(const char* type) {
    const T y[] = {T(1), T(2), T(3), T(-1), T(0), T(2)};
    T q[6], r[4], g[4], image[4], gram_[4], product[6];
    Workspace ws;
    const Mat<const T> y_{y, {3, 2}, {2, 1}};
    const double spread = cholesky_qr<T, T>(y_, {q, {3, 2}, {2, 1}}, {r, {2, 2}, {2, 1}}, {g, {2, 2}, {2, 1}}, ws, 1);
    lapack::gemm('C', 'N', index{2}, index{2}, index{3}, T(1), q, index{2}, q, index{2}, T(0), g, index{2});
    lapack::gemm('N', 'N', index{3}, index{2}, index{2}, T(1), q, index{2}, r, index{2}, T(0), product, index{2});
    const T eye[] = {T(1), T(0), T(0), T(1)};
    normal_apply<T>(y_, {eye, {2, 2}, {2, 1}}, {image, {2, 2}, {2, 1}}, 2, ws);
    gram<T, T>(y_, {gram_, {2, 2}, {2, 1}}, ws, 1);
    const T exact[] = {T(10), T(-1), T(-1), T(9)};
    const double tol = 100.0 * static_cast<double>(std::numeric_limits<real_t<T>>::epsilon());
    bool good = spread > 0.9 && spread <= 1.0;
    for (std::size_t i = 0; i < 4; ++i)
        good = good && std::abs(g[i] - eye[i]) < tol && std::abs(image[i] - exact[i]) < tol && std::abs(gram_[i] - exact[i]) < tol;
    for (std::size_t i = 0; i < 6; ++i) good = good && std::abs(product[i] - y[i]) < tol;
    require(good, "the routines of SciPy give wrong results for ", type);
}

void load_blas(const py::dict& blas, const py::dict& lapack) {
    static std::mutex loading;
    std::lock_guard<std::mutex> lock(loading);
    lapack::Table fresh;
    fetch_all(fresh.s, 's', blas, lapack);
    fetch_all(fresh.d, 'd', blas, lapack);
    fetch_all(fresh.c, 'c', blas, lapack);
    fetch_all(fresh.z, 'z', blas, lapack);
    fresh.int_bits = probe_width(fresh.d);
    const lapack::Table before = lapack::table();
    lapack::table() = fresh;
    try {
        self_test<float>("float32");
        self_test<double>("float64");
        self_test<std::complex<float>>("complex64");
        self_test<std::complex<double>>("complex128");
    } catch (...) {
        lapack::table() = before;
        throw;
    }
}

}  // namespace

void bind_lapack(py::module_& m) {
    m.def("load_blas", &load_blas, py::arg("blas"), py::arg("lapack"));
    m.def("blas_int_bits", [] { return lapack::table().int_bits; });
    m.def("parse_signature", &parse_signature, py::arg("text"));
}

}  // namespace tensorfact::bind
