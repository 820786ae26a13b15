/* One answer, coloured by who proposed each token. The first answer of the arm with the most accepted tokens
 * a step is taken, and of that arm one of middling acceptance, so that the picture is not a lucky one. */
#include "engine/err.h"
#include "engine/tokenizer.h"
#include "experiments/analyze_html.h"
#include "experiments/config.h"
#include "experiments/svg.h"
#include "experiments/trace_answer.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The arm with the highest AL among those that drafted, -1: none did. */
static int choose_arm(const struct analyze_report *r)
{
    int arm = -1;
    double most = 0;
    for (int i = 0; i < r->summary.n; i++) {
        const struct summary_row *row = &r->summary.rows[i];
        if (!row->group && row->sums.drafted_steps && row->al.value > most) {
            most = row->al.value;
            arm = row->arm;
        }
    }
    return arm;
}

/* The answer whose tokens a step are nearest to the arm's. */
static int64_t choose_request(const struct trace *t, int arm)
{
    double tokens = 0, steps = 0, best = INFINITY;
    int64_t found = -1;
    for (int64_t i = 0; i < t->n_requests; i++)
        if (t->requests[i].arm == arm) {
            tokens += (double)t->requests[i].tokens;
            steps += (double)t->requests[i].steps;
        }
    for (int64_t i = 0; i < t->n_requests; i++) {
        const struct trace_request *q = &t->requests[i];
        double d = q->arm == arm && q->steps ? fabs((double)q->tokens / (double)q->steps - tokens / steps)
                                             : INFINITY;
        if (d < best) {
            best = d;
            found = i;
        }
    }
    return found;
}

/* The tokenizer of the run's model, NULL: the directory is not there. */
static struct tokenizer *open_tokenizer(const struct trace_arm *arm)
{
    struct config c = {0};
    struct tokenizer *tok = NULL;
    if (config_parse(&c, arm->config, strlen(arm->config), arm->label, NULL, 0) || !*c.model.path ||
        tokenizer_open(&tok, c.model.path))
        tok = NULL;
    config_deinit(&c);
    err_clear();
    return tok;
}

static void put_tokens(const struct tokenizer *tok, const int *ids, int n, const char *kind, FILE *out)
{
    if (n < 1)
        return;
    fprintf(out, "<span class=\"%s\">", kind);
    char *text = tok ? tokenizer_decode(tok, ids, n) : NULL;
    if (text)
        svg_escape(out, text);
    for (int i = 0; i < n && !text; i++)
        fprintf(out, "%d ", ids[i]);
    free(text);
    fputs("</span>", out);
}

/* The node that was judged and not accepted: the first child of the last accepted one that is not accepted
 * itself. */
static const struct trace_node *rejected(const struct trace_node *nodes, int n)
{
    int parent = -1;
    for (int k = 0; k < n; k++)
        if (nodes[k].accepted)
            parent = k;
    for (int k = 0; k < n; k++)
        if (nodes[k].parent == parent && !nodes[k].accepted)
            return &nodes[k];
    return NULL;
}

static void put_steps(const struct trace_answer *a, const struct tokenizer *tok, FILE *out)
{
    int token = 0, node = 0;
    for (int i = 0; i < a->n_steps; i++) {
        const struct trace_step *s = &a->steps[i];
        int emitted = s->emitted < a->n_tokens - token ? s->emitted : a->n_tokens - token;
        int drafted = s->accepted < emitted ? s->accepted : emitted;
        put_tokens(tok, a->tokens + token, drafted, "acc", out);
        if (a->n_nodes) {
            const struct trace_node *no = rejected(a->nodes + node, s->proposed);
            int id = no ? no->token : 0;
            put_tokens(tok, &id, no != NULL, "rej", out);
            node += s->proposed;
        }
        put_tokens(tok, a->tokens + token + drafted, emitted - drafted, "bonus", out);
        token += emitted;
    }
}

void analyze_html_answer(const struct analyze_report *r, FILE *out)
{
    int arm = choose_arm(r);
    int64_t request = arm >= 0 ? choose_request(r->t, arm) : -1;
    struct trace_answer a = {0};
    if (request < 0)
        return;
    fputs("<h2>An answer, by who proposed each token</h2>", out);
    if (strstr(r->t->path, ", ") || trace_answer_read(&a, r->t->path, r->t, &r->t->requests[request])) {
        fputs("<p class=\"soft\">Shown for a single file only.</p>", out);
        err_clear();
        return;
    }
    struct tokenizer *tok = open_tokenizer(&r->t->arms[arm]);
    fputs("<p class=\"soft\">Arm ", out);
    svg_escape(out, r->t->arms[arm].label);
    fputs(", the answer whose acceptance is nearest to the arm's. <span class=\"acc\">drafted and "
          "accepted</span> "
          "<span class=\"bonus\">the target's own</span>",
          out);
    fputs(a.n_nodes ? " <span class=\"rej\">drafted and rejected</span></p>" : "</p>", out);
    fputs("<p class=\"soft\">Asked: ", out);
    svg_escape(out, r->t->prompts[r->t->requests[request].prompt].text);
    fputs("</p><div class=\"answer\">", out);
    put_steps(&a, tok, out);
    fputs("</div>\n", out);
    if (!tok)
        fputs("<p class=\"soft\">Token numbers, since the model's tokenizer is not where the run had it.</p>",
              out);
    tokenizer_close(tok);
    trace_answer_deinit(&a);
}
