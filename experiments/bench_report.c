/* bench_report: what heads a report: everything that the numbers below it depend on. */
#include "engine/err.h"
#include "experiments/bench.h"
#include <stdio.h>

static const char *numbers_name(enum model_numbers numbers)
{
    return numbers == MODEL_FP8 ? "fp8" : "bf16";
}

void bench_print_head(const struct bench *b)
{
    const struct backend *be = &b->tap.be;
    printf("model   %s%s: weights %s, activations %s, cache %s; a token reads %.1f MB of weights\n",
           b->shape ? b->shape : b->dir, b->shape ? " (random weights)" : "",
           numbers_name(b->numbers.weights), numbers_name(b->numbers.activations),
           numbers_name(b->numbers.kv), 1e-6 * (double)b->m.weight_bytes);
    printf("device  %s %d: %s\n", b->kind, b->index, be->device);
    if (be->clock_mhz)
        printf("clocks  at most %d MHz, memory %d MHz; last-level cache %.0f MiB\n", be->clock_mhz,
               be->memory_mhz, (double)be->cache_bytes / 0x1p20);
    else if (be->cache_bytes)
        printf("clocks  not known; last-level cache %.0f MiB\n", (double)be->cache_bytes / 0x1p20);
    printf("ceiling %.1f GB/s read by the device, best of 8 in this run\n", 1e-9 * b->ceiling);
    printf("passes  %s; %d warm-up, %d measured\n",
           b->eager ? "operation by operation" : "recorded where the device can", b->warmup, b->repeats);
    printf("memory  %.0f MiB of the process at most, %.0f MiB of the backend; cache of keys and values %.0f "
           "MiB\n\n",
           b->peak_mib, b->device_mib, (double)b->kv.bytes / 0x1p20);
}

json_t *bench_number(double x)
{
    return x == 0 ? json_null() : json_real(x);
}

json_t *bench_head_json(const struct bench *b)
{
    const struct backend *be = &b->tap.be;
    return json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:o, s:o, s:o, s:b, s:i, s:i, s:f, "
                     "s:f, s:f, s:f}",
                     "schema_version", 2, "what", b->what, "model", b->shape ? b->shape : b->dir, "weights",
                     numbers_name(b->numbers.weights), "activations", numbers_name(b->numbers.activations),
                     "kv", numbers_name(b->numbers.kv), "device", be->device, "isa", be->isa, "index",
                     b->index, "threads", be->threads, "clock_mhz", bench_number(be->clock_mhz), "memory_mhz",
                     bench_number(be->memory_mhz), "cache_bytes", bench_number((double)be->cache_bytes),
                     "recorded", !b->eager && !be->host_reads, "warmup", b->warmup, "repeats", b->repeats,
                     "weight_bytes", (double)b->m.weight_bytes, "read_bytes_per_s", b->ceiling, "peak_mib",
                     b->peak_mib, "device_mib", b->device_mib);
}

int bench_print_json(json_t *out)
{
    const int rc = out ? json_dumpf(out, stdout, JSON_INDENT(2)) : -1;
    json_decref(out);
    if (rc)
        FAIL(ERR_MEMORY, "bench: out of memory for the JSON");
    printf("\n");
    return 0;
}
