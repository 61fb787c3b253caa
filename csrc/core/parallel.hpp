// One small fork-safe pool of std::thread. No OpenMP: a forked child of an OpenMP process hangs, and wheels would carry a second
// runtime.
//
// Contract of `parallel_for(n, nthreads, grain, f)`: f(lo, hi) may not depend on how [0, n) is cut, so results have the same bits for
// any number of threads. A second concurrent or nested caller runs serially and never waits.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "seat.hpp"
#include "view.hpp"

namespace tensorfact {

class Pool {
   public:
    using Task = std::function<void(index, index)>;

    static constexpr int max_threads = 256;

    // Call once when the library is loaded. In a forked child the workers do not exist and the mutexes may be held: it forgets (leaks)
    // the parent's pool and never touches it.
    static void survive_fork() {
#if defined(__unix__) || defined(__APPLE__)
        pthread_atfork(nullptr, nullptr, [] { current().store(nullptr, std::memory_order_release); });
#endif
    }

    // The process-wide pool. Never destroyed: joining threads in a static destructor can hang the interpreter at exit.
    static Pool& instance() {
        Pool* pool = current().load(std::memory_order_acquire);
        if (pool) return *pool;
        Pool* fresh = new Pool;
        if (current().compare_exchange_strong(pool, fresh)) return *fresh;
        delete fresh;  // another thread was faster; ours has no workers yet
        return *pool;
    }

    void run(index n, int nthreads, index grain, const Task& task) {
        // A task that calls again holds the mutex already, and trying to lock it twice is undefined: it is told apart first.
        static thread_local bool inside = false;
        if (inside) return task(0, n);
        std::unique_lock<std::mutex> owner(run_mutex_, std::try_to_lock);
        if (!owner.owns_lock()) return task(0, n);
        struct Mark {
            Mark() { inside = true; }
            ~Mark() { inside = false; }
        } mark;
        const int helpers = grow(std::min<index>(nthreads, (n + grain - 1) / grain) - 1);
        if (helpers <= 0) return task(0, n);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            task_ = &task;
            next_.store(0, std::memory_order_relaxed);
            end_ = n;
            grain_ = grain;
            helpers_ = active_ = helpers;
            error_ = nullptr;
            for (int id = 0; id < std::min(helpers, seated); ++id) seats_[static_cast<std::size_t>(id)].avoid_caller();
            ++generation_;
        }
        wake_.notify_all();
        work();
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [&] { return active_ == 0; });
        task_ = nullptr;
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    }

   private:
    static std::atomic<Pool*>& current() {
        static std::atomic<Pool*> pool{nullptr};
        return pool;
    }

    // Called with run_mutex_ held, hence no region is active. Returns how many helpers there are, at most `wanted`.
    int grow(index wanted) {
        const int target = static_cast<int>(std::min<index>(wanted, max_threads - 1));
        try {
            for (; size_ < target; ++size_) {
                // Start from the present generation: a helper must not take part in a region that ended before it was born.
                std::thread helper([this, id = size_, seen = generation_] { serve(id, seen); });
                if (size_ < seated) seats_[static_cast<std::size_t>(size_)].belongs_to(helper.native_handle());
                helper.detach();
            }
        } catch (const std::system_error&) {
            // The system refuses more threads: go on with those we have.
        }
        return std::min(size_, target);
    }

    void serve(int id, unsigned long seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return generation_ != seen; });
            seen = generation_;
            if (id >= helpers_) continue;
            lock.unlock();
            if (id < seated) seats_[static_cast<std::size_t>(id)].release();
            work();
            lock.lock();
            if (--active_ == 0) done_.notify_one();
        }
    }

    void work() {
        for (;;) {
            const index lo = next_.fetch_add(grain_, std::memory_order_relaxed);
            if (lo >= end_) return;
            try {
                (*task_)(lo, std::min(lo + grain_, end_));
            } catch (...) {
                std::lock_guard<std::mutex> lock(mutex_);
                if (!error_) error_ = std::current_exception();
                next_.store(end_, std::memory_order_relaxed);
            }
        }
    }

    std::mutex run_mutex_, mutex_;
    std::condition_variable wake_, done_;
    const Task* task_ = nullptr;
    std::atomic<index> next_{0};
    index end_ = 0, grain_ = 1;
    int size_ = 0, helpers_ = 0, active_ = 0;
    unsigned long generation_ = 0;
    std::exception_ptr error_;
    static constexpr int seated = 16;  // among more CPUs one helper that shares is no loss, and each costs the caller a microsecond
    std::array<Seat, seated> seats_;
};

template <class F>
void parallel_for(index n, int nthreads, index grain, F&& f) {
    if (n <= 0) return;
    grain = std::max<index>(1, grain);
    if (nthreads <= 1 || n <= grain) return f(index{0}, n);
    Pool::instance().run(n, nthreads, grain, std::ref(f));
}

}  // namespace tensorfact
