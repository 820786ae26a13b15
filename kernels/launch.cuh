/* launch: the one way a kernel of this folder is launched, and the two calls that programmatic dependent
 * launch asks of it.
 *
 * A kernel may start while the one before it in the stream still runs. So every kernel calls launch_trigger
 * first thing (the next kernel may start), then requests what no kernel of a pass writes (weights), and calls
 * launch_wait in every thread before it reads or writes anything else. launch_wait returns when the kernel
 * before has finished and its writes are visible; that kernel waited in its turn, so by then everything
 * earlier has finished too. Loads that must stay behind the wait are not `__ldg` or `const __restrict__`: the
 * compiler may move those above it. */
#ifndef KERNELS_LAUNCH_CUH
#define KERNELS_LAUNCH_CUH
#include <cuda_runtime.h>

struct launch {
    dim3 grid, block;
    size_t shared;    /* bytes of dynamic shared memory */
    unsigned cluster; /* blocks a cluster, along x; 0 or 1: none */
    void *stream;     /* a cudaStream_t */
};

/* Launch `kernel(args...)`; the arguments are converted to the kernel's own parameter types. Returns a
 * cudaError_t. */
template <class... Params, class... Args>
static int launch_kernel(const struct launch *l, void (*kernel)(Params...), Args... args)
{
    cudaLaunchAttribute attr[2] = {};
    cudaLaunchConfig_t config = {};
    config.gridDim = l->grid;
    config.blockDim = l->block;
    config.dynamicSmemBytes = l->shared;
    config.stream = (cudaStream_t)l->stream;
    config.attrs = attr;
    config.numAttrs = l->cluster > 1 ? 2 : 1;
    attr[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attr[0].val.programmaticStreamSerializationAllowed = 1;
    attr[1].id = cudaLaunchAttributeClusterDimension;
    attr[1].val.clusterDim.x = l->cluster;
    attr[1].val.clusterDim.y = attr[1].val.clusterDim.z = 1;
    if (l->shared >
        32 * 1024) { /* with its static memory a kernel may be past the 48 KB it gets without asking */
        cudaError_t e =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)l->shared);
        if (e != cudaSuccess)
            return (int)e;
    }
    return (int)cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

__device__ static inline void launch_trigger(void)
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

__device__ static inline void launch_wait(void)
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}
#endif
