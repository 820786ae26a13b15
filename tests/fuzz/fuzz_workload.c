/* Any bytes as a JSON Lines file of prompts: refused with a message, or read into prompts that keep their
 * promises. */
#include "engine/err.h"
#include "engine/utf8.h"
#include "experiments/workload.h"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void check(int ok)
{
    if (!ok)
        abort();
}

static void check_text(const char *text)
{
    check(text && utf8_valid(text, strlen(text)) == strlen(text));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct workload w = {0};
    if (workload_parse(&w, (const char *)data, n, "fuzz.jsonl", "fuzz"))
        check(err_text()[0] != 0);
    for (int i = 0; i < w.n; i++) {
        const struct prompt *p = &w.prompts[i];
        check(p->index == i && p->n_turns >= 1 && p->n_turns <= WORKLOAD_MAX_TURNS);
        check_text(p->id);
        check_text(p->category);
        check_text(p->dataset);
        for (int k = 0; k < p->n_turns; k++) {
            check_text(p->turns[k]);
            check(p->turns[k][0] != 0);
        }
    }
    workload_deinit(&w);
    return 0;
}
