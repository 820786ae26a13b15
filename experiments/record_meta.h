/* record_meta: what a run says of itself: copied, compared and continued by a later run. */
#ifndef EXPERIMENTS_RECORD_META_H
#define EXPERIMENTS_RECORD_META_H
#include "experiments/trace.h"

int  record_meta_copy(struct trace_meta *to, const struct trace_meta *from);
int  record_meta_set(char **text, const char *value); /* replace an owned text by a copy */
char *record_meta_now(void); /* ISO 8601, UTC; malloc'ed, the caller's; NULL when out of memory */
/* May a run that says `now` continue the file at path, which says `was`? ERR_CONFIG with what differs. */
int  record_meta_check(const char *path, const struct trace_meta *was, const struct trace_meta *now);
/* What may change between the runs that make one file is listed in `now`, oldest first, and logged as a warning. */
int  record_meta_continue(struct trace_meta *now, const struct trace_meta *was);
#endif
