/* drafts: the one place that knows every strategy. */
#include "drafts/drafts.h"
#include <stddef.h>
#include <string.h>

const struct draft_ops *const drafts_all[] = {&draft_none, &draft_ngram, &draft_oracle, &draft_eagle3, NULL};

const struct draft_ops *drafts_find(const char *name)
{
    for (int i = 0; drafts_all[i]; i++)
        if (strcmp(drafts_all[i]->name, name) == 0)
            return drafts_all[i];
    return NULL;
}
