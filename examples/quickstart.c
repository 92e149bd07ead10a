/* Trains a small model in memory, asks it, and adds an item that nobody has interacted with. */
#include <stdio.h>
#include <stdlib.h>

#include "bm3_engine.h"

/* A call that fails ends this program, with the library's words. */
static void must(bm3_status status)
{
    if (status != BM3_OK) {
        fprintf(stderr, "error: %s\n", bm3_last_error());
        exit(status);
    }
}

static int32_t after_epoch(const bm3_epoch *epoch, void *user)
{
    *(double *)user = epoch->loss;
    return 0; /* anything else stops the training */
}

int main(void)
{
    /* Six users, six items, in two groups; a text embedding of two numbers for each item. */
    const uint32_t users[] = {0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5};
    const uint32_t items[] = {0, 1, 1, 2, 2, 0, 3, 4, 4, 5, 5, 3};
    const float text[] = {.9f, .1f, .8f, .2f, .7f, .1f, .2f, .8f, .1f, .9f, .3f, .7f};
    const float new_text[] = {.2f, .9f};
    bm3_dataset_builder *builder;
    bm3_dataset *dataset;
    bm3_recommender *recommender;
    bm3_features features = {.modality = "text", .values = text, .values_len = 12, .columns = 2};
    double loss;
    uint32_t best[2], similar[2], added;
    float scores[2];

    must(bm3_dataset_builder_new("shop", &builder));
    must(bm3_dataset_builder_add_pairs(builder, BM3_TRAIN, users, items, 12));
    must(bm3_dataset_builder_add_features(builder, &features));
    must(bm3_dataset_builder_finish(&builder, &dataset));
    must(bm3_train(dataset, "embedding-size = 16\nlearning-rate = 0.01\nepochs = 200", "cpu", NULL,
                   0, after_epoch, &loss, &recommender));
    printf("trained to a loss of %.2f\n", loss);

    must(bm3_recommend(recommender, &users[0], 1, NULL, 2, 0, best, 2, scores, 2));
    printf("user 0: item %u (%.3f), item %u (%.3f)\n", best[0], scores[0], best[1], scores[1]);
    must(bm3_similar_items(recommender, &items[0], 1, 2, similar, 2, NULL, 0));
    printf("like item 0: items %u and %u\n", similar[0], similar[1]);

    features.values = new_text;
    features.values_len = 2;
    must(bm3_add_items(recommender, &features, 1, &added, NULL));
    must(bm3_recommend(recommender, &users[6], 1, NULL, 2, 0, best, 2, scores, 2));
    printf("user 3, with item %u new: item %u (%.3f), item %u (%.3f)\n", added, best[0], scores[0],
           best[1], scores[1]);

    must(bm3_recommender_free(&recommender));
    must(bm3_dataset_free(&dataset));
    return 0;
}
