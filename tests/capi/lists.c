/* Prints the lists of all users of a model as the program does, the scores as their bits:
   lists MODEL K */
#include <inttypes.h>

#include "check.h"

int main(int count, char **arguments)
{
    bm3_recommender *recommender;
    size_t users, k;

    CHECK(count == 3);
    k = strtoul(arguments[2], NULL, 10);
    OK(bm3_recommender_open(arguments[1], NULL, &recommender));
    OK(bm3_recommender_sizes(recommender, &users, NULL, NULL));
    uint32_t *ids = calloc(users, sizeof *ids), *items = calloc(users * k, sizeof *items);
    float *scores = calloc(users * k, sizeof *scores);
    CHECK(ids != NULL && items != NULL && scores != NULL);
    for (size_t user = 0; user < users; user++)
        ids[user] = (uint32_t)user;
    OK(bm3_recommend(recommender, ids, users, NULL, k, 0, items, users * k, scores, users * k));
    for (size_t place = 0; place < users * k; place++) {
        uint32_t bits;
        memcpy(&bits, &scores[place], sizeof bits);
        if (items[place] != BM3_NO_ITEM)
            printf("%zu,%zu,%" PRIu32 ",%08" PRIx32 "\n", place / k, place % k + 1, items[place],
                   bits);
    }
    free(ids);
    free(items);
    free(scores);
    OK(bm3_recommender_free(&recommender));
    return 0;
}
