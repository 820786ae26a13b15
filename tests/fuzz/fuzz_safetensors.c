/* fuzz_safetensors: any bytes as a file. What is refused has a message; what is read is sorted, inside the
 * bytes, found by name, and every byte of it can be touched. */
#include "engine/err.h"
#include "engine/safetensors.h"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check(int ok)
{
    if (!ok)
        abort();
}

static size_t touch(const struct tensor *t)
{
    size_t sum = 0;
    for (size_t i = 0; i < t->bytes; i++)
        sum += ((const unsigned char *)t->data)[i];
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct safetensors st = {0};
    size_t bytes = 0, sum = 0;
    err_clear();
    if (safetensors_parse(&st, data, n, "fuzz")) {
        check(*err_text() && !st.tensors && st.n == 0);
        return 0;
    }
    for (int i = 0; i < st.n; i++) {
        const struct tensor *t = &st.tensors[i];
        const uint8_t *at = t->data;
        check(i == 0 || strcmp(st.tensors[i - 1].name, t->name) < 0);
        check(safetensors_find(&st, t->name) == t);
        check(at >= data && t->bytes <= n && at <= data + n - t->bytes);
        check(t->n_dims <= TENSOR_MAX_DIMS && strlen(t->dtype) < sizeof t->dtype);
        bytes += t->bytes;
        sum += touch(t);
        safetensors_release(&st, t->data, t->bytes);
    }
    check(bytes <= n && sum <= 255 * n);
    safetensors_close(&st);
    return 0;
}
