/* backend_cpu_group: join, reduce and gather of the CPU backend; contracts in engine/backend.h and kernels/reduce.h. */
#ifndef ENGINE_BACKEND_CPU_GROUP_H
#define ENGINE_BACKEND_CPU_GROUP_H
#include "engine/backend.h"

int cpu_join(struct backend *be, const struct comm *c, size_t bytes);
int cpu_reduce(struct backend *be, const struct reduce *a);
int cpu_gather(struct backend *be, const struct gather *a);
#endif
