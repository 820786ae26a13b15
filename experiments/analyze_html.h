/* analyze_html: a report as one page that needs nothing else: no network, no script, plots as inline SVG, light, dark and paper. */
#ifndef EXPERIMENTS_ANALYZE_HTML_H
#define EXPERIMENTS_ANALYZE_HTML_H
#include "experiments/analyze_report.h"

/* The page; r's tables of results, positions, comparisons and the rest are filled. Reads one answer of the file again, and the model's tokenizer
 * where its directory is still there. ERR_MEMORY, ERR_IO. */
int analyze_html(const struct analyze_report *r, FILE *out);

/* The plots, and the answer whose tokens are coloured by who proposed them (analyze_html_plots.c, analyze_html_answer.c). */
int  analyze_html_plots(const struct analyze_report *r, FILE *out);
void analyze_html_answer(const struct analyze_report *r, FILE *out);
#endif
