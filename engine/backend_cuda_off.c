/* backend_cuda_off: what stands in for backend_cuda.c in a build without CUDA: an entry of the table that
 * says how to get the real one. Its open never succeeds, so no other operation is ever reached. */
#include "engine/backend.h"
#include "engine/err.h"

#define HOW "this program was built without CUDA; build it with -DSPECBED_CUDA=ON, which needs nvcc 13"

static void off_describe(FILE *out)
{
    fprintf(out, "cuda: cannot be used: %s\n", HOW);
}

static int off_open(struct backend *be, const struct backend_opts *opts)
{
    (void)be;
    (void)opts;
    FAIL(ERR_CONFIG, "device 'cuda': %s", HOW);
}

static void off_close(struct backend *be)
{
    (void)be;
}

const struct backend_ops backend_cuda = {
    .name = "cuda", .describe = off_describe, .open = off_open, .close = off_close};
