/* bench_project: bytes of a rank / (data sheet * reach * share of the ceiling measured) + collectives +
 * draft. */
#include "experiments/bench_project.h"
#include "engine/err.h"
#include <string.h>

/* B200: 8.0 TB/s by data sheet. Reach: an H100 read 3.10 of its 3.35 TB/s. Collective: all-reduce with
 * RMSNorm on B200, the best of sglang's pull request 7621. */
static const struct projection known[] = {
    {"b200x8", 8, 8.0e12, 0.925, 8.7e-6, 2, 0, 1},
};

int projection_named(const char *name, struct projection *out)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].name)) {
            *out = known[i];
            return 0;
        }
    FAIL(ERR_CONFIG, "--project: expected b200x8, found '%.40s'", name);
}

struct projected projection_of(const struct projection *p, const struct projected_from *m)
{
    struct projected r = {.bytes = m->bytes * m->ranks_held / p->ranks, .share = m->floor / m->seconds};
    r.pass_s = r.bytes / (p->sheet * p->reach * r.share);
    r.collectives_s = p->collective_s * p->per_layer * m->layers;
    r.step_s = r.pass_s + r.collectives_s + p->draft_s;
    r.tokens_per_s = p->al / r.step_s;
    return r;
}

void projection_print(const struct projection *p, const struct projected_from *m, FILE *out)
{
    const struct projected r = projection_of(p, m);
    fprintf(out, "\nprojection to %s, not measured: %d rows behind %d tokens\n", p->name, m->rows,
            m->context);
    fprintf(out, "  assumed  %.1f MB a rank: the bytes measured here, cut evenly into %d parts\n",
            1e-6 * r.bytes, p->ranks);
    fprintf(out, "  assumed  %.2f TB/s a GPU, its data sheet\n", 1e-12 * p->sheet);
    fprintf(out, "  assumed  %.1f%% of that is what plain reading reaches (an H100: 3.10 of 3.35 TB/s)\n",
            100 * p->reach);
    fprintf(out, "  assumed  %.1f%% of the ceiling, as the pass measured here\n", 100 * r.share);
    fprintf(out,
            "  assumed  %.2f us an all-reduce, %d a layer, %d layers, none hidden (sglang PR 7621 on B200)\n",
            1e6 * p->collective_s, p->per_layer, m->layers);
    fprintf(out, "  assumed  %.3f ms of drafting a step\n", 1e3 * p->draft_s);
    fprintf(out, "  assumed  %.2f tokens a step\n", p->al);
    fprintf(out,
            "  follows  %.4f ms pass + %.4f ms all-reduces + %.4f ms draft = %.4f ms a step, %.0f tokens/s "
            "for one user\n",
            1e3 * r.pass_s, 1e3 * r.collectives_s, 1e3 * p->draft_s, 1e3 * r.step_s, r.tokens_per_s);
}
