/* What the C tests share: checks that end the program, and a data set with something to learn. */
#ifndef CHECK_H
#define CHECK_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bm3_engine.h"

#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            fprintf(stderr, "%s:%d: %s\nlast error: %s\n", __FILE__, __LINE__, #condition,        \
                    bm3_last_error());                                                            \
            exit(1);                                                                              \
        }                                                                                         \
    } while (0)

#define OK(call) CHECK((call) == BM3_OK)

/* A call that is refused, with words in its message. */
#define BAD(call, words)                                                                          \
    do {                                                                                          \
        CHECK((call) == BM3_BAD_INPUT);                                                           \
        CHECK(strstr(bm3_last_error(), (words)) != NULL);                                         \
    } while (0)

enum { USERS = 24, ITEMS = 18, GROUPS = 3, COLUMNS = 4 };

static const char SETTINGS[] = "embedding-size = 8\nbatch-size = 32\nlearning-rate = 0.02\n"
                               "epochs = 6\npatience = 100\n";

/* Whether a user has interacted with an item: with those of the user's group, but for one in six,
   which is to be found, and with few others. The last item nobody has interacted with. */
static inline int is_train(uint32_t user, uint32_t item)
{
    uint32_t same = user % GROUPS == item % GROUPS;
    if (item == ITEMS - 1)
        return 0;
    return same ? (user + item) % 6 != 0 : (5 * user + 7 * item) % 29 == 0;
}

static inline void fill_features(float *values)
{
    for (uint32_t item = 0; item < ITEMS; item++)
        for (uint32_t column = 0; column < COLUMNS; column++)
            values[item * COLUMNS + column] = (item % GROUPS == column ? 1.0f : 0.1f) +
                                              0.01f * (float)((item * 7 + column * 3) % 5);
}

/* The parts of a data set, to be finished or not. */
static inline bm3_dataset_builder *small_builder(int with_valid)
{
    uint32_t users[USERS * ITEMS], items[USERS * ITEMS];
    float values[ITEMS * COLUMNS];
    size_t count = 0;
    bm3_dataset_builder *builder = NULL;
    bm3_features features = {.modality = "text",
                             .values = values,
                             .values_len = ITEMS * COLUMNS,
                             .columns = COLUMNS};

    OK(bm3_dataset_builder_new("small", &builder));
    for (uint32_t user = 0; user < USERS; user++)
        for (uint32_t item = 0; item < ITEMS; item++)
            if (is_train(user, item)) {
                users[count] = user;
                items[count++] = item;
            }
    OK(bm3_dataset_builder_add_pairs(builder, BM3_TRAIN, users, items, count));
    count = 0;
    for (uint32_t user = 0; user < USERS; user++)
        for (uint32_t item = 0; item + 1 < ITEMS; item++)
            if (user % GROUPS == item % GROUPS && !is_train(user, item)) {
                users[count] = user;
                items[count++] = item;
            }
    if (with_valid)
        OK(bm3_dataset_builder_add_pairs(builder, BM3_VALID, users, items, count));
    OK(bm3_dataset_builder_add_pairs(builder, BM3_TEST, users, items, 3));
    fill_features(values);
    OK(bm3_dataset_builder_add_features(builder, &features));
    OK(bm3_dataset_builder_at_least(builder, USERS, ITEMS));
    return builder;
}

static inline bm3_dataset *small_dataset(int with_valid)
{
    bm3_dataset *dataset = NULL;
    bm3_dataset_builder *builder = small_builder(with_valid);
    OK(bm3_dataset_builder_finish(&builder, &dataset));
    CHECK(builder == NULL && dataset != NULL);
    return dataset;
}

/* Without a validation split the last epoch is the best. */
static inline bm3_recommender *small_recommender(const char *settings)
{
    bm3_recommender *recommender = NULL;
    bm3_dataset *dataset = small_dataset(0);
    OK(bm3_train(dataset, settings, NULL, NULL, 0, NULL, NULL, &recommender));
    OK(bm3_dataset_free(&dataset));
    return recommender;
}

#endif
