/* bench_report: what heads a report, everything that the numbers below it depend on, and the table of stages.
 */
#include "engine/err.h"
#include "experiments/bench.h"
#include <stdio.h>

static const char *numbers_name(enum model_numbers numbers)
{
    return numbers == MODEL_FP8 ? "fp8" : "bf16";
}

static void print_shard(const struct bench *b)
{
    const struct shard *s = &b->numbers.shard;
    if (b->layers)
        printf("layers  the first %d alone\n", b->m.cfg.layers);
    if (s->world > 1)
        printf("rank    %d of a world of %d, alone: MB and memory are its share's, collectives are copies "
               "within "
               "the device, of as many bytes\n",
               s->rank, s->world);
}

void bench_print_clocks(const struct bench *b, const struct backend_clocks *c)
{
    const struct backend *be = &b->tap.be;
    if (c->mhz > 0)
        printf("  ran at %d of %d MHz, memory at %d of %d MHz", c->mhz, be->clock_mhz, c->memory_mhz,
               be->memory_mhz);
    if (c->slowed_by[0])
        printf("%s by %s", c->mhz > 0 ? "; held back" : "  held back", c->slowed_by);
    if (c->mhz > 0 || c->slowed_by[0])
        printf("\n");
}

json_t *bench_clocks_json(json_t *into, const struct backend_clocks *c)
{
    json_object_set_new(into, "ran_mhz", bench_number(c->mhz));
    json_object_set_new(into, "ran_memory_mhz", bench_number(c->memory_mhz));
    json_object_set_new(into, "slowed_by", c->slowed_by[0] ? json_string(c->slowed_by) : json_null());
    return into;
}

void bench_print_head(const struct bench *b)
{
    const struct backend *be = &b->tap.be;
    printf("model   %s%s: weights %s, activations %s, cache %s; a token reads %.1f MB of weights\n",
           b->shape ? b->shape : b->dir, b->shape ? " (random weights)" : "",
           numbers_name(b->numbers.weights), numbers_name(b->numbers.activations),
           numbers_name(b->numbers.kv), 1e-6 * (double)b->m.weight_bytes);
    printf("device  %s %d: %s\n", b->kind, b->index, be->device);
    print_shard(b);
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
    const struct shard *shard = &b->numbers.shard;
    json_t *rank = shard->world > 1 ? json_pack("[i, i]", shard->rank, shard->world) : json_null();
    return json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:o, s:o, s:o, s:b, s:i, s:i, s:f, "
                     "s:f, s:f, s:f, s:o, s:i, s:o}",
                     "schema_version", 3, "what", b->what, "model", b->shape ? b->shape : b->dir, "weights",
                     numbers_name(b->numbers.weights), "activations", numbers_name(b->numbers.activations),
                     "kv", numbers_name(b->numbers.kv), "device", be->device, "isa", be->isa, "index",
                     b->index, "threads", be->threads, "clock_mhz", bench_number(be->clock_mhz), "memory_mhz",
                     bench_number(be->memory_mhz), "cache_bytes", bench_number((double)be->cache_bytes),
                     "recorded", !b->eager && !be->host_reads, "warmup", b->warmup, "repeats", b->repeats,
                     "weight_bytes", (double)b->m.weight_bytes, "read_bytes_per_s", b->ceiling, "peak_mib",
                     b->peak_mib, "device_mib", b->device_mib, "empty_s", bench_number(b->empty), "layers",
                     b->m.cfg.layers, "shard", rank);
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

static void print_rival(const struct bench_stage *s)
{
    if (s->rival > 0)
        printf(" %10.2f %6.2f\n", 1e6 * s->rival, s->rival / s->time.median);
    else
        printf(" %10s %6s\n", "-", "-");
}

void bench_print_stages(const struct bench *b, const struct bench_stage *s, int n)
{
    if (n > 0)
        printf("%d row%s behind %d tokens, each operation alone\n", s->rows, s->rows == 1 ? "" : "s",
               s->context);
    printf("%-14s %7s %6s %5s %7s %9s %9s %9s %9s %-8s %7s %8s %9s %10s %6s\n", "operation", "n", "k",
           "count", "kernels", "us", "p90 us", "in pass", "MB", "of", "GB/s", "of roof", "floor us",
           "library us", "ratio");
    for (int i = 0; i < n; i++) {
        if (s[i].around && !s[i - 1].around)
            printf("around the pass, in a step of the decode loop\n");
        const double rate = s[i].bytes / s[i].time.median;
        printf("%-14s ", s[i].name);
        if (s[i].n)
            printf("%7d %6d ", s[i].n, s[i].k);
        else
            printf("%7s %6s ", "-", "-");
        printf("%5d %7zu %9.2f %9.2f ", s[i].count, s[i].launches, 1e6 * s[i].time.median,
               1e6 * s[i].time.p90);
        if (s[i].in_pass > 0)
            printf("%9.2f ", 1e6 * s[i].in_pass);
        else
            printf("%9s ", "-");
        printf("%9.3f %-8s %7.0f %7.1f%% %9.2f", 1e-6 * s[i].bytes, s[i].moves, 1e-9 * rate,
               100 * rate / b->ceiling, 1e6 * bench_floor(b, s[i].bytes));
        print_rival(&s[i]);
        if (s[i].experts > 0)
            printf("%14s reads the shared expert and %.2f others, the mean; n and k are of one's first "
                   "product\n",
                   "", s[i].experts);
    }
}

static json_t *stage_json(const struct bench *b, const struct bench_stage *s)
{
    const double rate = s->bytes / s->time.median;
    return json_pack("{s:s, s:s, s:s, s:i, s:i, s:o, s:o, s:i, s:I, s:f, s:f, s:o, s:o, s:f, s:f, s:f, s:f, "
                     "s:f, s:o, s:o}",
                     "name", s->name, "part", s->around ? "step" : "pass", "moves", s->moves, "rows", s->rows,
                     "context", s->context, "n", bench_number(s->n), "k", bench_number(s->k), "count",
                     s->count, "launches", (json_int_t)s->launches, "median_s", s->time.median, "p90_s",
                     s->time.p90, "in_pass_s", bench_number(s->in_pass), "experts", bench_number(s->experts),
                     "bytes", s->bytes, "rotated_bytes", s->rotated, "bytes_per_s", rate, "of_roof",
                     rate / b->ceiling, "floor_s", bench_floor(b, s->bytes), "rival_s",
                     bench_number(s->rival), "rival_ratio", bench_number(s->rival / s->time.median));
}

json_t *bench_stages_json(const struct bench *b, const struct bench_stage *s, int n)
{
    json_t *out = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(out, stage_json(b, &s[i]));
    return out;
}
