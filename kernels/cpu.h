/* cpu: the fast CPU kernels, one table an instruction set, chosen at run time. */
#ifndef KERNELS_CPU_H
#define KERNELS_CPU_H
#include "kernels/attention.h"
#include "kernels/embed.h"
#include "kernels/gather.h"
#include "kernels/gemm.h"
#include "kernels/logits.h"
#include "kernels/moe.h"
#include "kernels/quantise.h"
#include "kernels/rmsnorm.h"

struct cpu_kernels {
    const char *name; /* "avx512", "avx2", "portable" */
    void (*gemm)(const struct gemm *a);
    void (*swiglu)(const struct gemm *a);
    void (*rmsnorm)(const struct rmsnorm *a);
    void (*rope)(const struct rope *a);
    void (*attention)(const struct attention *a);
    void (*logits)(const struct logits *a);
    void (*gather)(const struct gather *a);
    void (*route)(const struct route *a);
    void (*moe)(const struct moe *a);
};

/* name: "auto" (the widest this machine has) or one of the names above. NULL: not known or not on this machine. */
const struct cpu_kernels *cpu_kernels_find(const char *name);
/* The i-th table this machine can run, widest first; NULL past the end. */
const struct cpu_kernels *cpu_kernels_at(int i);
#endif
