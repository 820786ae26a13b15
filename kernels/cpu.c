/* cpu: the tables and the choice between them. A machine that is not x86 has the portable one alone. */
#include "kernels/cpu.h"

#define DECLARE(isa)                                                                                         \
    void gemm_##isa(const struct gemm *a);                                                                   \
    void swiglu_##isa(const struct gemm *a);                                                                 \
    void rmsnorm_##isa(const struct rmsnorm *a);                                                             \
    void rope_##isa(const struct rope *a);                                                                   \
    void attention_##isa(const struct attention *a);                                                         \
    void logits_##isa(const struct logits *a);                                                               \
    void gather_##isa(const struct gather *a);                                                               \
    void route_##isa(const struct route *a);                                                                 \
    void moe_##isa(const struct moe *a);                                                                     \
    static const struct cpu_kernels table_##isa = {.name = #isa,                                             \
                                                   .gemm = gemm_##isa,                                       \
                                                   .swiglu = swiglu_##isa,                                   \
                                                   .rmsnorm = rmsnorm_##isa,                                 \
                                                   .rope = rope_##isa,                                       \
                                                   .attention = attention_##isa,                             \
                                                   .logits = logits_##isa,                                   \
                                                   .gather = gather_##isa,                                   \
                                                   .route = route_##isa,                                     \
                                                   .moe = moe_##isa};

DECLARE(portable)
#ifdef KERN_HAS_X86
DECLARE(avx2)
DECLARE(avx512)
#endif

const struct cpu_kernels *cpu_kernels_at(int i)
{
    const struct cpu_kernels *have[3];
    int n = 0;
#ifdef KERN_HAS_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        have[n++] = &table_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        have[n++] = &table_avx2;
#endif
    have[n++] = &table_portable;
    return i >= 0 && i < n ? have[i] : NULL;
}

const struct cpu_kernels *cpu_kernels_find(const char *name)
{
    if (strcmp(name, "auto") == 0)
        return cpu_kernels_at(0);
    for (int i = 0; cpu_kernels_at(i); i++)
        if (strcmp(name, cpu_kernels_at(i)->name) == 0)
            return cpu_kernels_at(i);
    return NULL;
}
