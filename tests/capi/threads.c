/* One recommender, asked by four threads at a time: the lists of one thread alone, and errors that
   stay in their thread. */
#include <pthread.h>

#include "check.h"

enum { THREADS = 4, ROUNDS = 200, K = 6 };

struct answers {
    uint32_t lists[USERS * K], similar[ITEMS * K], visitor[K];
    float scores[USERS * K], cosines[ITEMS * K], visitor_scores[K];
};

struct asker {
    const bm3_recommender *recommender;
    const struct answers *expected;
    uint32_t number;
};

static void ask(const bm3_recommender *recommender, struct answers *answers)
{
    uint32_t ids[USERS];
    size_t offsets[] = {0, 2};
    bm3_lists histories = {.offsets = offsets, .offsets_len = 2, .items = ids, .items_len = 2};

    for (uint32_t id = 0; id < USERS; id++)
        ids[id] = id;
    memset(answers, 0, sizeof *answers);
    OK(bm3_recommend(recommender, ids, USERS, NULL, K, 0, answers->lists, USERS * K,
                     answers->scores, USERS * K));
    OK(bm3_similar_items(recommender, ids, ITEMS, K, answers->similar, ITEMS * K, answers->cosines,
                         ITEMS * K));
    OK(bm3_recommend_for_items(recommender, &histories, NULL, K, 0, answers->visitor, K,
                               answers->visitor_scores, K));
}

static void *thread(void *argument)
{
    const struct asker *asker = argument;
    struct answers answers;
    uint32_t wrong = 1000 + asker->number, list[K];
    char words[32];

    CHECK(bm3_last_error()[0] == '\0');
    snprintf(words, sizeof words, "user: %u found", wrong);
    for (int round = 0; round < ROUNDS; round++) {
        BAD(bm3_recommend(asker->recommender, &wrong, 1, NULL, K, 0, list, K, NULL, 0), words);
        ask(asker->recommender, &answers);
        CHECK(memcmp(&answers, asker->expected, sizeof answers) == 0);
        CHECK(strncmp(bm3_last_error(), words, strlen(words)) == 0);
    }
    return NULL;
}

int main(void)
{
    static struct answers expected;
    bm3_recommender *recommender = small_recommender(SETTINGS);
    bm3_recommender *other = small_recommender(SETTINGS);
    pthread_t threads[THREADS];
    struct asker askers[THREADS];

    ask(other, &expected);
    for (uint32_t n = 0; n < THREADS; n++) {
        askers[n] = (struct asker){recommender, &expected, n};
        CHECK(pthread_create(&threads[n], NULL, thread, &askers[n]) == 0);
    }
    for (uint32_t n = 0; n < THREADS; n++)
        CHECK(pthread_join(threads[n], NULL) == 0);
    OK(bm3_recommender_free(&recommender));
    OK(bm3_recommender_free(&other));
    return 0;
}
