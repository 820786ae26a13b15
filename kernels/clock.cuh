/* clock: the GPU's own time. */
#ifndef KERNELS_CLOCK_CUH
#define KERNELS_CLOCK_CUH
#include <stdint.h>

/* ns, the same on all multiprocessors, with no epoch; only after launch_wait does it say when a kernel's work began. */
__device__ static inline int64_t clock_now(void)
{
    int64_t ns;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns)::"memory");
    return ns;
}
#endif
