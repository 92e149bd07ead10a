/* Forked processes use the models that they inherit, open others and train, as their parent does. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

/* Enough for work in parallel, also when a model is opened. */
enum { MANY_USERS = 1500, MANY_ITEMS = 300, PAIRS = 8 * MANY_USERS, K = 5, LIMIT_S = 120 };

static const char MANY[] = "embedding-size = 8\nbatch-size = 4096\nepochs = 1\n";

struct answers {
    uint32_t lists[MANY_USERS * K], similar[K];
    float scores[MANY_USERS * K];
};

static bm3_dataset *many_pairs(void)
{
    static uint32_t users[PAIRS], items[PAIRS];
    bm3_dataset_builder *builder = NULL;
    bm3_dataset *dataset = NULL;

    for (uint32_t pair = 0; pair < PAIRS; pair++) {
        users[pair] = pair / 8;
        items[pair] = (pair / 8 * 5 + pair % 8 * 37) % MANY_ITEMS;
    }
    OK(bm3_dataset_builder_new("many", &builder));
    OK(bm3_dataset_builder_add_pairs(builder, BM3_TRAIN, users, items, PAIRS));
    OK(bm3_dataset_builder_finish(&builder, &dataset));
    return dataset;
}

static void ask(const bm3_recommender *recommender, struct answers *answers)
{
    static uint32_t users[MANY_USERS];
    for (uint32_t user = 0; user < MANY_USERS; user++)
        users[user] = user;
    OK(bm3_recommend(recommender, users, MANY_USERS, NULL, K, 0, answers->lists, MANY_USERS * K,
                     answers->scores, MANY_USERS * K));
    OK(bm3_similar_items(recommender, &(uint32_t){3}, 1, K, answers->similar, K, NULL, 0));
}

static void check_same(const bm3_recommender *recommender, const struct answers *expected)
{
    static struct answers answers;
    ask(recommender, &answers);
    CHECK(memcmp(&answers, expected, sizeof answers) == 0);
}

int main(int count, char **arguments)
{
    static struct answers expected;
    bm3_dataset *dataset = many_pairs();
    bm3_recommender *inherited = NULL, *other = NULL, *made = NULL;
    pid_t child;
    int status;

    CHECK(count == 2);
    OK(bm3_train(dataset, MANY, NULL, NULL, 0, NULL, NULL, &inherited));
    OK(bm3_recommender_save(inherited, arguments[1]));
    OK(bm3_recommender_open(arguments[1], NULL, &other));
    ask(other, &expected);
    fflush(NULL);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        /* Waiting for threads that are not there ends by a signal. */
        alarm(LIMIT_S);
        check_same(inherited, &expected);
        check_same(other, &expected);
        OK(bm3_recommender_open(arguments[1], NULL, &made));
        check_same(made, &expected);
        OK(bm3_recommender_free(&made));
        OK(bm3_train(dataset, MANY, NULL, NULL, 0, NULL, NULL, &made));
        check_same(made, &expected);
        BAD(bm3_recommend(made, &(uint32_t){MANY_USERS}, 1, NULL, K, 0, expected.lists, K, NULL, 0),
            "user: 1500 found");
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    check_same(inherited, &expected);
    OK(bm3_recommender_free(&inherited));
    OK(bm3_recommender_free(&other));
    OK(bm3_dataset_free(&dataset));
    return 0;
}
