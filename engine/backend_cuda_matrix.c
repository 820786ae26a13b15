/* backend_cuda_matrix: weights are packed on the host, then uploaded. */
#include "engine/backend_cuda.h"
#include "engine/err.h"
#include "kernels/cuda.h"
#include <stdlib.h>

int cuda_matrix(struct backend *be, struct matrix *w, const struct matrix_source *from)
{
    const int n = matrix_source_n(from);
    const size_t bytes = matrix_cuda_bytes(n, from->k, MATRIX_BF16);
    struct matrix_source plain = *from;
    void *packed = malloc(bytes), *data = NULL;
    plain.flags &= ~(unsigned)MATRIX_ROTARY;
    if (!packed)
        FAIL(ERR_MEMORY, "cuda: out of host memory for a matrix of %zu bytes", bytes);
    matrix_pack_cuda(packed, NULL, &plain);
    int rc = cuda_alloc(be, bytes, &data);
    if (!rc)
        rc = cuda_upload(be, data, packed, bytes);
    free(packed);
    *w = (struct matrix){.n = n, .k = from->k, .data = data, .bytes = bytes};
    return rc;
}
