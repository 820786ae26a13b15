/* suggest: the textbook table, three rows of it at a time. */
#include "experiments/suggest.h"
#include <stddef.h>
#include <string.h>

static int least(int a, int b)
{
    return a < b ? a : b;
}

int suggest_distance(const char *a, const char *b)
{
    int before[SUGGEST_MAX + 1], last[SUGGEST_MAX + 1], row[SUGGEST_MAX + 1];
    int n = (int)strnlen(a, SUGGEST_MAX), m = (int)strnlen(b, SUGGEST_MAX);
    for (int j = 0; j <= m; j++)
        before[j] = row[j] = j;
    for (int i = 1; i <= n; i++) {
        memcpy(last, row, sizeof last);
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            row[j] = least(last[j - 1] + (a[i - 1] != b[j - 1]), least(last[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = least(row[j], before[j - 2] + 1);
        }
        memcpy(before, last, sizeof before);
    }
    return row[m];
}

void suggest_begin(struct suggest *s, const char *word)
{
    /* A third of the letters may be wrong, and one always may. */
    int allowed = (int)strnlen(word, SUGGEST_MAX) / 3;
    *s = (struct suggest){.word = word, .distance = (allowed < 1 ? 1 : allowed) + 1};
}

void suggest_try(struct suggest *s, const char *candidate)
{
    int d = suggest_distance(s->word, candidate);
    if (d < s->distance) {
        s->distance = d;
        s->best = candidate;
    }
}
