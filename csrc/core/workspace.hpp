// Scratch memory that is reused between calls: fresh pages cost 4 GB/s on first touch (13 GB/s with huge pages), warm ones nothing.
#pragma once

#include <cstdlib>
#include <limits>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "view.hpp"

namespace tensorfact {

// Bump arena. A `Frame` marks the present position and returns to it when it goes out of scope, also by an exception.
class Workspace {
   public:
    static constexpr std::size_t align = 64, huge_page = std::size_t{2} << 20;
    static constexpr std::size_t keep = std::size_t{64} << 20;  // a larger block goes back to the system with the outermost frame

    Workspace() = default;
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    class Frame {
       public:
        explicit Frame(Workspace& ws) : ws_(ws), used_(ws.used_), demand_(ws.demand_), extra_(ws.extra_.size()) { ++ws_.depth_; }
        ~Frame() {
            ws_.extra_.resize(extra_);
            ws_.used_ = used_;
            ws_.demand_ = demand_;
            if (--ws_.depth_ > 0) return;
            if (ws_.block_.size > keep || ws_.block_.size < std::min(ws_.peak_, keep)) ws_.block_ = Block{};
        }
        Frame(const Frame&) = delete;
        Frame& operator=(const Frame&) = delete;

        // Uninitialised memory for `n` elements, aligned to a cache line, valid as long as this frame.
        template <class T>
        T* take(index n) {
            require(n >= 0 && static_cast<std::size_t>(n) <= std::numeric_limits<std::size_t>::max() / (2 * sizeof(T)),
                    "workspace: size must be a non-negative number that fits memory, got ", n);
            return static_cast<T*>(ws_.take(static_cast<std::size_t>(n) * sizeof(T)));
        }

       private:
        Workspace& ws_;
        std::size_t used_, demand_, extra_;
    };

    std::size_t capacity() const { return block_.size; }

   private:
    struct Block {
        void* data = nullptr;
        std::size_t size = 0;

        Block() = default;
        explicit Block(std::size_t bytes) {
            const std::size_t unit = bytes >= 2 * huge_page ? huge_page : align;
            size = (bytes + unit - 1) / unit * unit;
            data = std::aligned_alloc(unit, size);
            if (!data) throw std::bad_alloc();
#if defined(__linux__)
            if (unit == huge_page) ::madvise(data, size, MADV_HUGEPAGE);  // advice only: failure changes nothing
#endif
        }
        Block(Block&& other) noexcept : data(std::exchange(other.data, nullptr)), size(std::exchange(other.size, 0)) {}
        Block& operator=(Block&& other) noexcept {
            std::swap(data, other.data);
            std::swap(size, other.size);
            return *this;
        }
        ~Block() { std::free(data); }
    };

    void* take(std::size_t bytes) {
        bytes = std::max(align, (bytes + align - 1) / align * align);
        demand_ += bytes;
        peak_ = std::max(peak_, demand_);  // next time one block holds everything
        if (used_ + bytes > block_.size) {
            if (used_ != 0) {  // the block is in use and cannot move
                extra_.emplace_back(bytes);
                return extra_.back().data;
            }
            block_ = Block{};
            block_ = Block(std::max(bytes, std::min(peak_, keep)));
        }
        void* out = static_cast<char*>(block_.data) + used_;
        used_ += bytes;
        return out;
    }

    Block block_;
    std::vector<Block> extra_;
    std::size_t used_ = 0, demand_ = 0, peak_ = 0;
    int depth_ = 0;
};

// One arena for each thread that calls kernels.
inline Workspace& local_workspace() {
    static thread_local Workspace ws;
    return ws;
}

}  // namespace tensorfact
