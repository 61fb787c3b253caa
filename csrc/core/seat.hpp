// Keeps a helper off the CPU of the thread that wakes it.
//
// Linux does not take a CPU for idle whose hypervisor let it sleep, and then wakes a thread beside the one that called it: in a virtual
// machine that rested, caller and helper share one CPU for milliseconds, longer than most kernels take, while another one is free.
#pragma once

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

#include <cstddef>

namespace tensorfact {

// One for each helper. The owner of both orders the two calls by a mutex.
class Seat {
   public:
#if defined(__linux__)
    void belongs_to(pthread_t helper) { helper_ = helper; }

    // By the caller, while the helper waits: it may wake up wherever it was allowed to be, but not on this CPU.
    void avoid_caller() {
        const int cpu = sched_getcpu();
        if (cpu < 0 || cpu >= CPU_SETSIZE || pthread_getaffinity_np(helper_, sizeof allowed_, &allowed_) != 0) return;
        cpu_set_t others = allowed_;
        CPU_CLR(static_cast<std::size_t>(cpu), &others);
        moved_ = CPU_COUNT(&others) > 0 && pthread_setaffinity_np(helper_, sizeof others, &others) == 0;
    }

    // By the helper, awake: it may go anywhere again.
    void release() {
        if (moved_) pthread_setaffinity_np(helper_, sizeof allowed_, &allowed_);
        moved_ = false;
    }

   private:
    pthread_t helper_{};
    cpu_set_t allowed_{};
    bool moved_ = false;
#else
    template <class Thread>
    void belongs_to(Thread) {}
    void avoid_caller() {}
    void release() {}
#endif
};

}  // namespace tensorfact
