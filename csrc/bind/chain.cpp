#include "../core/chain.hpp"

#include <cstdint>
#include <vector>

#include "convert.hpp"

namespace tensorfact::bind {
namespace {

using namespace py::literals;

std::vector<Site> sites_of(const Array<std::int64_t>& sizes) {
    const auto view = in(sizes, "sizes");
    require(view.shape[1] == 4, "sizes must have 4 columns, got ", view.shape[1]);
    std::vector<Site> sites;
    for (index l = 0; l < view.shape[0]; ++l) {
        const auto at = [&](index k) { return static_cast<index>(view.data[l * view.strides[0] + k * view.strides[1]]); };
        sites.push_back({at(0), at(1), at(2), at(3)});
    }
    return sites;
}

template <class T>
void bind_chain_of(py::module_& m) {
    m.def(
        "chain",
        [](const Array<T>& x, const Array<T>& cores, const Array<std::int64_t>& sizes, const Array<T>& bias, Array<T>& y, bool from_left,
           int nthreads) {
            const auto x_ = in(x, "x"), cores_ = in(cores, "cores"), bias_ = in(bias, "bias");
            const auto y_ = out(y, "y");
            const auto sites = sites_of(sizes);
            const T* core = contiguous(cores_, "cores");
            const T* offset = contiguous(bias_, "bias");
            std::vector<const T*> each;
            index total = 0;
            for (const auto& [r, rows, columns, s] : sites) {
                each.push_back(core + total);
                total += r * rows * columns * s;
            }
            require(cores_.shape[0] == 1 && cores_.shape[1] == total, "cores must have shape (1, ", total, ")");
            require(bias_.shape[1] == 0 || bias_.shape[1] == y_.shape[1], "bias must have ", y_.shape[1], " columns or none, got ", bias_.shape[1]);
            nogil released;
            chain<T>(x_, sites.data(), static_cast<index>(sites.size()), each.data(), bias_.shape[1] ? offset : nullptr, y_, from_left,
                     local_workspace(), nthreads);
        },
        py::arg("x").noconvert(), py::arg("cores").noconvert(), py::arg("sizes").noconvert(), py::arg("bias").noconvert(),
        py::arg("y").noconvert(), "from_left"_a, "nthreads"_a);
}

template <class T>
void bind_kron_sum(py::module_& m) {
    m.def(
        "kron_sum",
        [](const Array<T>& left, const Array<T>& right, Array<T>& sum, index m1, index m2, int nthreads) {
            const auto left_ = in(left, "left"), right_ = in(right, "right");
            const auto sum_ = out(sum, "out");
            const T *a = contiguous(left_, "left"), *b = contiguous(right_, "right");
            T* to = contiguous(sum_, "out");
            require(m1 >= 1 && m2 >= 1 && left_.shape[0] % m1 == 0 && right_.shape[1] % m2 == 0, "kron_sum: the rows must divide the factors");
            const index n1 = left_.shape[0] / m1, n2 = right_.shape[1] / m2;
            require(sum_.shape[0] == m1 * m2 && sum_.shape[1] == n1 * n2, "out must have shape (", m1 * m2, ", ", n1 * n2, ")");
            nogil released;
            kron_sum<T>(1, &a, &b, {m1, n1, left_.shape[1]}, {right_.shape[0], m2, n2}, &to, local_workspace(), nthreads);
        },
        py::arg("left").noconvert(), py::arg("right").noconvert(), py::arg("out").noconvert(), "m1"_a, "m2"_a, "nthreads"_a);
}

index number(const py::handle& item) { return item.cast<index>(); }

template <class T>
T* address(const py::handle& item) {
    return reinterpret_cast<T*>(item.cast<std::uintptr_t>());
}

// The same two by addresses, for tensors that NumPy cannot see without a detour: the caller answers for types, sizes and contiguity.
template <class T>
void run_chain_at(std::uintptr_t x, index tokens, const py::tuple& cores, std::uintptr_t bias, std::uintptr_t y, bool from_left, int nthreads) {
    std::array<Site, max_sites> sites;
    std::array<const T*, max_sites> each;
    const auto count = static_cast<index>(cores.size());
    require(count >= 1 && count <= max_sites, "chain_at: the number of cores must be from 1 to ", max_sites, ", got ", count);
    index rows = 1, columns = 1;
    for (std::size_t l = 0; l < cores.size(); ++l) {
        const py::tuple core = cores[l];
        each[l] = address<const T>(core[0]);
        sites[l] = {number(core[1]), number(core[2]), number(core[3]), number(core[4])};
        rows *= sites[l].m;
        columns *= sites[l].n;
    }
    nogil released;
    chain<T>({reinterpret_cast<const T*>(x), {tokens, columns}, {columns, 1}}, sites.data(), count, each.data(), reinterpret_cast<const T*>(bias),
             {reinterpret_cast<T*>(y), {tokens, rows}, {rows, 1}}, from_left, local_workspace(), nthreads);
}

template <class T>
void run_kron_sum_at(const py::tuple& members, std::array<index, 3> left, std::array<index, 3> right, int nthreads) {
    std::vector<const T*> a, b;
    std::vector<T*> to;
    for (const auto& member : members) {
        const auto three = member.cast<py::tuple>();
        a.push_back(address<const T>(three[0]));
        b.push_back(address<const T>(three[1]));
        to.push_back(address<T>(three[2]));
    }
    nogil released;
    kron_sum<T>(static_cast<index>(a.size()), a.data(), b.data(), left, right, to.data(), local_workspace(), nthreads);
}

}  // namespace

void bind_chain(py::module_& m) {
    bind_chain_of<float>(m);
    bind_chain_of<double>(m);
    bind_kron_sum<float>(m);
    bind_kron_sum<double>(m);
    m.def(
        "chain_at",
        [](bool wide, std::uintptr_t x, index tokens, const py::tuple& cores, std::uintptr_t bias, std::uintptr_t y, bool from_left, int nthreads) {
            (wide ? run_chain_at<double> : run_chain_at<float>)(x, tokens, cores, bias, y, from_left, nthreads);
        },
        "wide"_a, "x"_a, "tokens"_a, "cores"_a, "bias"_a, "y"_a, "from_left"_a, "nthreads"_a);
    m.def(
        "kron_sum_at",
        [](bool wide, const py::tuple& members, index m1, index n1, index r, index m2, index n2, int nthreads) {
            (wide ? run_kron_sum_at<double> : run_kron_sum_at<float>)(members, {m1, n1, r}, {r, m2, n2}, nthreads);
        },
        "wide"_a, "members"_a, "m1"_a, "n1"_a, "r"_a, "m2"_a, "n2"_a, "nthreads"_a);
}

}  // namespace tensorfact::bind
