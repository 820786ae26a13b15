/* backend_cuda_group: this GPU as a rank of a group, inside the CUDA backend. */
#ifndef ENGINE_BACKEND_CUDA_GROUP_H
#define ENGINE_BACKEND_CUDA_GROUP_H
#include "engine/backend.h"
#include <cuda_runtime_api.h>

int  cuda_join(struct backend *be, const struct comm *c, size_t bytes);
int  cuda_reduce(struct backend *be, const struct reduce *a);
int  cuda_allgather(struct backend *be, const struct allgather *a);
/* Until the stream has done all that was enqueued. When another rank fails meanwhile, kernels that wait for it are told to stop. */
cudaError_t cuda_group_wait(struct backend *be);
int  cuda_group_check(struct backend *be); /* ERR_DEVICE when a kernel of this rank gave up on another one, or some rank failed */
/* Two steps of closing: kernels will wait for nobody if a rank has failed; and, the stream being done and recorded passes gone, the rest. Without a
 * group they do nothing. */
void cuda_group_end(struct backend *be);
void cuda_group_close(struct backend *be);
#endif
