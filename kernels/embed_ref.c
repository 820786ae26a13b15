/* embed: one value of each pair line of the token's panel, k / 2 lines of 64 bytes a token. */
#include "kernels/embed.h"

void embed_ref(const struct embed *a)
{
    int k = a->w->k;
    size_t pairs = ((size_t)k + 1) / 2;
    for (int r = 0; r < a->rows; r++) {
        size_t panel = (size_t)(a->token[r] / MATRIX_PANEL), lane = (size_t)(a->token[r] % MATRIX_PANEL);
        const bf16 *w = (const bf16 *)a->w->data + (panel * pairs * MATRIX_PANEL + lane) * 2;
        const float scale = a->w->scale ? a->w->scale[a->token[r]] : 1.0f;
        for (int i = 0; i < k; i++)
            a->y[(size_t)r * (size_t)k + (size_t)i] =
                bf16_to_f32(w[(size_t)(i / 2) * 2 * MATRIX_PANEL + (size_t)(i % 2)]) * scale;
    }
}
