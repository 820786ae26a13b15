/* analyze_score: columns, and where their numbers come from. */
#include "experiments/analyze_score.h"

enum { FIT = ANALYZE_SCORE_FIT, NEAR = ANALYZE_SCORE_NEAR };

const struct table_column analyze_score_columns[] = {
    {"arm", "arm", "", TABLE_TEXT, 0, FIT | NEAR},
    {"lossy", "", "", TABLE_TEXT, 0, 0},
    {"group", "group", "", TABLE_TEXT, 0, FIT | NEAR},
    {"baseline", "", "", TABLE_TEXT, 0, 0},
    {"prompts", "prompts", "", TABLE_COUNT, 0, FIT},
    {"requests", "answers", "", TABLE_COUNT, 0, FIT},
    {"tokens", "tokens", "", TABLE_COUNT, 0, FIT},
    {"prompt_tokens", "", "", TABLE_COUNT, 0, 0},
    {"perplexity", "perplexity", "[95 %]", TABLE_INTERVAL, 3, FIT},
    {"perplexity_ratio", "over stored numbers'", "[95 %]", TABLE_INTERVAL, 4, FIT},
    {"paired_prompts", "", "", TABLE_COUNT, 0, 0},
    {"top1", "top-1", "given", TABLE_SHARE, 1, NEAR},
    {"entropy", "", "", TABLE_REAL, 3, 0},
    {"agreement", "agreement", "[95 %]", TABLE_INTERVAL, 4, NEAR},
    {"kl", "mean KL, nats", "[95 %]", TABLE_INTERVAL, 5, NEAR},
    {"kl_p99", "KL, nats", "p99", TABLE_REAL, 4, NEAR},
};
const int analyze_score_n_columns = sizeof analyze_score_columns / sizeof *analyze_score_columns;

const char analyze_score_legend[] =
    "perplexity: exp of the mean -log p over all tokens of the given answers; over stored numbers': divided "
    "by that "
    "of the arm whose model has its numbers as stored, on the same prompts. top-1: the arm's most probable "
    "token is "
    "the given one. agreement: it is the reference's most probable one; KL: of the arm from the reference, "
    "KL(reference || arm), a token. The reference is the same checkpoint as stored.";

void analyze_score_cells(struct table *x, const struct trace *t, const struct summary_row *row)
{
    const struct summary_scores *s = &row->scores;
    double tokens = (double)s->sums.tokens;
    if (row->baseline >= 0)
        table_text(x, "baseline", t->arms[row->baseline].label);
    table_number(x, "prompts", (double)row->prompts);
    table_number(x, "requests", (double)row->sums.requests);
    table_number(x, "tokens", tokens);
    table_number(x, "prompt_tokens", (double)row->sums.prompt_tokens);
    table_interval(x, "perplexity", s->perplexity);
    table_interval(x, "perplexity_ratio", s->ratio);
    table_number(x, "paired_prompts", (double)row->paired_prompts);
    table_number(x, "top1", stats_ratio((double[]){(double)s->sums.top1, tokens}));
    table_number(x, "entropy", stats_ratio((double[]){s->sums.entropy, tokens}));
    table_interval(x, "agreement", s->agreement);
    table_interval(x, "kl", s->kl);
    table_number(x, "kl_p99", s->kl_p99);
}
