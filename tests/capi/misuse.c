/* Every function with NULL for each pointer, lengths and ids that are wrong, handles of another kind,
   handles freed twice: refused with a sentence, and nothing is read or written that is not the
   caller's. */
#include "check.h"

static bm3_recommender *recommender;
static bm3_dataset *dataset;
static uint32_t ids[] = {0, 1, 2, 3};
static uint32_t items[8];
static float scores[8];

/* A call that would put a handle into `made` and is refused: NULL is there, whatever was before. */
#define BAD_MAKER(call, words)                                                                    \
    do {                                                                                          \
        made = (void *)ids;                                                                       \
        BAD(call, words);                                                                         \
        CHECK(made == NULL);                                                                      \
    } while (0)

static void errors_and_versions(void)
{
    CHECK(bm3_last_error() != NULL && bm3_last_error()[0] == '\0');
    CHECK(strchr(bm3_version(), '.') != NULL);
}

static void building(void)
{
    float values[4] = {1, 2, 3, 4};
    bm3_features features = {.modality = "text", .values = values, .values_len = 4, .columns = 2};
    bm3_dataset_builder *builder = (bm3_dataset_builder *)&values;
    bm3_dataset_builder *none = NULL;
    bm3_dataset *made = NULL;

    BAD(bm3_dataset_builder_new(NULL, &builder), "name: NULL");
    CHECK(builder == NULL);
    BAD(bm3_dataset_builder_new("a", NULL), "builder: NULL");
    builder = (bm3_dataset_builder *)&values;
    BAD(bm3_dataset_builder_new("\xff", &builder), "UTF-8");
    CHECK(builder == NULL);
    OK(bm3_dataset_builder_new("a", &builder));

    BAD(bm3_dataset_builder_add_pairs(NULL, BM3_TRAIN, ids, ids, 4), "NULL found");
    BAD(bm3_dataset_builder_add_pairs(builder, BM3_TRAIN, NULL, ids, 4), "users: NULL");
    BAD(bm3_dataset_builder_add_pairs(builder, BM3_TRAIN, ids, NULL, 4), "items: NULL");
    BAD(bm3_dataset_builder_add_pairs(builder, BM3_TRAIN, ids, ids, SIZE_MAX), "more than memory");
    BAD(bm3_dataset_builder_add_pairs(builder, BM3_TRAIN, (uint32_t *)((char *)ids + 1), ids, 1),
        "users: an address");
    BAD(bm3_dataset_builder_add_pairs(builder, 3, ids, ids, 4), "split: 3");
    BAD(bm3_dataset_builder_add_pairs(builder, -1, ids, ids, 4), "split: -1");
    OK(bm3_dataset_builder_add_pairs(builder, BM3_TEST, NULL, NULL, 0));

    BAD(bm3_dataset_builder_add_features(NULL, &features), "NULL found");
    BAD(bm3_dataset_builder_add_features(builder, NULL), "features: NULL");
    features.modality = NULL;
    BAD(bm3_dataset_builder_add_features(builder, &features), "features.modality: NULL");
    features.modality = "text";
    features.values = NULL;
    BAD(bm3_dataset_builder_add_features(builder, &features), "either `values` or `files`");
    features.files = "/nowhere.npy";
    BAD(bm3_dataset_builder_add_features(builder, &features), "/nowhere.npy");
    features.values = values;
    BAD(bm3_dataset_builder_add_features(builder, &features), "either `values` or `files`");
    features.files = NULL;
    features.columns = 3;
    BAD(bm3_dataset_builder_add_features(builder, &features), "4 feature values");
    features.columns = 0;
    BAD(bm3_dataset_builder_add_features(builder, &features), "0 columns");
    features.columns = SIZE_MAX;
    BAD(bm3_dataset_builder_add_features(builder, &features), "4 feature values");
    features.columns = 2;
    features.values_len = SIZE_MAX;
    BAD(bm3_dataset_builder_add_features(builder, &features), "more than memory");

    BAD(bm3_dataset_builder_at_least(NULL, 1, 1), "NULL found");
    BAD_MAKER(bm3_dataset_builder_finish(NULL, &made), "builder: NULL");
    BAD_MAKER(bm3_dataset_builder_finish(&none, &made), "builder: NULL");
    BAD(bm3_dataset_builder_finish(&builder, NULL), "dataset: NULL");
    CHECK(builder != NULL);
    /* Parts that make no data set. */
    BAD_MAKER(bm3_dataset_builder_finish(&builder, &made), "no training interaction");
    CHECK(builder == NULL);
    OK(bm3_dataset_builder_new("a", &builder));
    OK(bm3_dataset_builder_at_least(builder, SIZE_MAX, 1));
    OK(bm3_dataset_builder_add_pairs(builder, BM3_TRAIN, ids, ids, 4));
    BAD_MAKER(bm3_dataset_builder_finish(&builder, &made), "at most");
    OK(bm3_dataset_builder_new("a", &builder));
    OK(bm3_dataset_builder_add_pairs(builder, BM3_TRAIN, ids, &(uint32_t){UINT32_MAX}, 1));
    BAD_MAKER(bm3_dataset_builder_finish(&builder, &made), "4294967295 found");

    OK(bm3_dataset_builder_new("a", &builder));
    OK(bm3_dataset_builder_free(&builder));
    CHECK(builder == NULL);
    OK(bm3_dataset_builder_free(&builder));
    OK(bm3_dataset_builder_free(NULL));
}

static void data_sets(void)
{
    bm3_dataset *made = NULL;
    const char *warnings;
    size_t size;

    BAD_MAKER(bm3_dataset_open(NULL, NULL, &made), "folder: NULL");
    BAD(bm3_dataset_open("/nowhere", NULL, NULL), "dataset: NULL");
    BAD_MAKER(bm3_dataset_open("/nowhere", NULL, &made), "/nowhere");
    BAD_MAKER(bm3_dataset_open("/nowhere", "lajers = 1", &made), "did you mean `layers`");
    BAD(bm3_dataset_sizes(NULL, &size, &size), "NULL found");
    OK(bm3_dataset_sizes(dataset, NULL, &size));
    CHECK(size == ITEMS);
    BAD(bm3_dataset_warnings(NULL, &warnings), "NULL found");
    BAD(bm3_dataset_warnings(dataset, NULL), "warnings: NULL");
    OK(bm3_dataset_free(NULL));
    OK(bm3_dataset_free(&made));
}

static void training(void)
{
    bm3_recommender *made = NULL;

    BAD_MAKER(bm3_train(NULL, NULL, NULL, NULL, 0, NULL, NULL, &made), "NULL found");
    BAD(bm3_train(dataset, SETTINGS, NULL, NULL, 0, NULL, NULL, NULL), "recommender: NULL");
    BAD_MAKER(bm3_train(dataset, SETTINGS, "gpu", NULL, 0, NULL, NULL, &made),
              "device: `gpu` found");
    BAD_MAKER(bm3_train(dataset, SETTINGS, NULL, NULL, 2, NULL, NULL, &made), "flags: 0x2");
    BAD_MAKER(bm3_train(dataset, SETTINGS, NULL, NULL, BM3_RESUME, NULL, NULL, &made),
              "directory: NULL");
    BAD_MAKER(bm3_train((bm3_dataset *)recommender, SETTINGS, NULL, NULL, 0, NULL, NULL, &made),
              "of another kind");
}

static void recommenders(void)
{
    bm3_recommender *made = NULL;
    const float *rows;
    const char *text;
    const uint32_t *cold;
    size_t size;

    BAD_MAKER(bm3_recommender_open(NULL, NULL, &made), "file: NULL");
    BAD(bm3_recommender_open("/nowhere", NULL, NULL), "recommender: NULL");
    BAD_MAKER(bm3_recommender_open("/nowhere", NULL, &made), "/nowhere");
    BAD_MAKER(bm3_recommender_open("/nowhere", "tpu", &made), "device: `tpu`");
    BAD_MAKER(bm3_recommender_open("/", NULL, &made), "model.safetensors");
    BAD(bm3_recommender_save(NULL, "x"), "NULL found");
    BAD(bm3_recommender_save(recommender, NULL), "file: NULL");
    BAD(bm3_recommender_save(recommender, "/nowhere/x"), "/nowhere");
    BAD(bm3_recommender_sizes(NULL, &size, &size, &size), "NULL found");
    OK(bm3_recommender_sizes(recommender, &size, NULL, &size));
    BAD(bm3_user_rows(NULL, &rows, &size), "NULL found");
    BAD(bm3_user_rows(recommender, NULL, &size), "rows: NULL");
    BAD(bm3_user_rows(recommender, &rows, NULL), "rows_len: NULL");
    BAD(bm3_item_rows(NULL, &rows, &size), "NULL found");
    BAD(bm3_item_rows(recommender, NULL, &size), "rows: NULL");
    BAD(bm3_item_rows(recommender, &rows, NULL), "rows_len: NULL");
    BAD(bm3_cold_items(NULL, &cold, &size), "NULL found");
    BAD(bm3_cold_items(recommender, NULL, &size), "items: NULL");
    BAD(bm3_cold_items(recommender, &cold, NULL), "items_len: NULL");
    BAD(bm3_cold_users(NULL, &cold, &size), "NULL found");
    BAD(bm3_cold_users(recommender, NULL, &size), "users: NULL");
    BAD(bm3_cold_users(recommender, &cold, NULL), "users_len: NULL");
    BAD(bm3_recommender_device(NULL, &text), "NULL found");
    BAD(bm3_recommender_device(recommender, NULL), "device: NULL");
    BAD(bm3_recommender_record(NULL, &text), "NULL found");
    BAD(bm3_recommender_record(recommender, NULL), "record: NULL");
    OK(bm3_recommender_free(NULL));
    OK(bm3_recommender_free(&made));
}

static void lists_for_users(void)
{
    const bm3_recommender *r = recommender;
    size_t offsets[] = {0, 1, 2, 3, 4};
    bm3_lists excluded = {.offsets = offsets, .offsets_len = 5, .items = ids, .items_len = 4};

    BAD(bm3_recommend(NULL, ids, 4, NULL, 2, 0, items, 8, scores, 8), "NULL found");
    BAD(bm3_recommend(r, NULL, 4, NULL, 2, 0, items, 8, scores, 8), "users: NULL");
    BAD(bm3_recommend(r, ids, 4, NULL, 2, 0, NULL, 8, scores, 8), "items: NULL");
    BAD(bm3_recommend(r, ids, 4, NULL, 2, 0, items, 8, NULL, 8), "scores: NULL");
    BAD(bm3_recommend(r, ids, 4, NULL, 2, 0, items, 7, scores, 8),
        "items: room for 7 found, exactly 8 expected");
    BAD(bm3_recommend(r, ids, 4, NULL, 2, 0, items, 9, scores, 8), "items: room for 9");
    BAD(bm3_recommend(r, ids, 4, NULL, 2, 0, items, 8, scores, 4), "scores: room for 4");
    BAD(bm3_recommend(r, ids, 4, NULL, 0, 0, items, 0, scores, 0), "k: 0 found");
    BAD(bm3_recommend(r, ids, 0, NULL, 1025, 0, items, 0, scores, 0), "k: 1025 found");
    BAD(bm3_recommend(r, ids, 4, NULL, SIZE_MAX, 0, items, 8, scores, 8), "more than memory");
    BAD(bm3_recommend(r, ids, SIZE_MAX, NULL, 2, 0, items, 8, scores, 8), "users: a length");
    BAD(bm3_recommend(r, ids, 4, NULL, 2, 2, items, 8, scores, 8), "flags: 0x2");
    BAD(bm3_recommend(r, &(uint32_t){USERS}, 1, NULL, 2, 0, items, 2, scores, 2),
        "user: 24 found, a number from 0 to 23 expected");
    BAD(bm3_recommend(r, &(uint32_t){UINT32_MAX}, 1, NULL, 2, 0, items, 2, NULL, 0), "user: 4294");

    OK(bm3_recommend(r, ids, 4, &excluded, 2, 0, items, 8, scores, 8));
    excluded.offsets_len = 4;
    BAD(bm3_recommend(r, ids, 4, &excluded, 2, 0, items, 8, scores, 8), "excluded.offsets");
    excluded.items_len = 3;
    BAD(bm3_recommend(r, ids, 4, &excluded, 2, 0, items, 8, scores, 8), "3 lists found, 4 expected");
    excluded.offsets_len = 0;
    BAD(bm3_recommend(r, ids, 4, &excluded, 2, 0, items, 8, scores, 8), "excluded.offsets");
    excluded = (bm3_lists){.offsets = offsets, .offsets_len = 5, .items = NULL, .items_len = 4};
    BAD(bm3_recommend(r, ids, 4, &excluded, 2, 0, items, 8, scores, 8), "excluded.items: NULL");
    excluded = (bm3_lists){.offsets = NULL, .offsets_len = 5, .items = ids, .items_len = 4};
    BAD(bm3_recommend(r, ids, 4, &excluded, 2, 0, items, 8, scores, 8), "excluded.offsets: NULL");
    excluded.offsets = (size_t[]){0, 3, 2, 3, 4};
    BAD(bm3_recommend(r, ids, 4, &excluded, 2, 0, items, 8, scores, 8), "ascend from 0 to 4");
    excluded.offsets = (size_t[]){1, 2, 2, 3, 4};
    BAD(bm3_recommend(r, ids, 4, &excluded, 2, 0, items, 8, scores, 8), "ascend from 0 to 4");
    excluded.offsets = (size_t[]){0, 1, 2, 3, SIZE_MAX};
    BAD(bm3_recommend(r, ids, 4, &excluded, 2, 0, items, 8, scores, 8), "ascend from 0 to 4");
    excluded = (bm3_lists){
        .offsets = offsets, .offsets_len = 2, .items = (uint32_t[]){ITEMS}, .items_len = 1};
    BAD(bm3_recommend(r, ids, 1, &excluded, 2, 0, items, 2, scores, 2), "item: 18 found");
}

static void lists_for_others(void)
{
    const bm3_recommender *r = recommender;
    size_t offsets[] = {0, 1, 2, 3, 4};
    bm3_lists lists = {.offsets = offsets, .offsets_len = 5, .items = ids, .items_len = 4};
    bm3_lists empty = {.offsets = offsets, .offsets_len = 1};
    bm3_lists nothing = {.offsets = (size_t[]){0, 0}, .offsets_len = 2};
    bm3_lists one = {.offsets = offsets, .offsets_len = 2, .items = ids, .items_len = 1};

    BAD(bm3_recommend_for_items(NULL, &lists, NULL, 2, 0, items, 8, scores, 8), "NULL found");
    BAD(bm3_recommend_for_items(r, NULL, NULL, 2, 0, items, 8, scores, 8), "histories: NULL");
    BAD(bm3_recommend_for_items(r, &lists, NULL, 2, 0, NULL, 8, scores, 8), "items: NULL");
    BAD(bm3_recommend_for_items(r, &lists, NULL, 2, 0, items, 8, NULL, 8), "scores: NULL");
    BAD(bm3_recommend_for_items(r, &lists, NULL, 2, 0, items, 4, scores, 8), "items: room for 4");
    BAD(bm3_recommend_for_items(r, &lists, NULL, 2, 0, items, 8, scores, 9), "scores: room for 9");
    BAD(bm3_recommend_for_items(r, &lists, NULL, 2, 4, items, 8, scores, 8), "flags: 0x4");
    BAD(bm3_recommend_for_items(r, &lists, &empty, 2, 0, items, 8, scores, 8), "0 lists found");
    OK(bm3_recommend_for_items(r, &empty, NULL, 2, 0, NULL, 0, NULL, 0));
    BAD(bm3_recommend_for_items(r, &nothing, NULL, 2, 0, items, 2, NULL, 0), "items: none found");
    lists.items = (uint32_t[]){0, 1, 2, 99};
    BAD(bm3_recommend_for_items(r, &lists, NULL, 2, 0, items, 8, scores, 8), "item: 99 found");

    BAD(bm3_rows_for_items(NULL, &one, scores, 8), "NULL found");
    BAD(bm3_rows_for_items(r, NULL, scores, 8), "histories: NULL");
    BAD(bm3_rows_for_items(r, &one, NULL, 8), "rows: NULL");
    BAD(bm3_rows_for_items(r, &one, scores, 7), "rows: room for 7");
    BAD(bm3_rows_for_items(r, &nothing, scores, 8), "items: none found");
    OK(bm3_rows_for_items(r, &empty, NULL, 0));

    BAD(bm3_similar_items(NULL, ids, 4, 2, items, 8, scores, 8), "NULL found");
    BAD(bm3_similar_items(r, NULL, 4, 2, items, 8, scores, 8), "of: NULL");
    BAD(bm3_similar_items(r, ids, 4, 2, NULL, 8, scores, 8), "items: NULL");
    BAD(bm3_similar_items(r, ids, 4, 2, items, 8, NULL, 8), "scores: NULL");
    BAD(bm3_similar_items(r, ids, 4, 2, items, 6, scores, 8), "items: room for 6");
    BAD(bm3_similar_items(r, ids, 4, 2, items, 8, scores, 6), "scores: room for 6");
    BAD(bm3_similar_items(r, &(uint32_t){ITEMS}, 1, 2, items, 2, scores, 2), "item: 18 found");
    BAD(bm3_similar_items(r, ids, 1, 1025, NULL, 0, NULL, 0), "items: room for 0");

    BAD(bm3_rank(NULL, 0, ids, 4, 2, 0, items, 2, scores, 2), "NULL found");
    BAD(bm3_rank(r, 0, NULL, 4, 2, 0, items, 2, scores, 2), "candidates: NULL");
    BAD(bm3_rank(r, 0, ids, 4, 2, 0, NULL, 2, scores, 2), "items: NULL");
    BAD(bm3_rank(r, 0, ids, 4, 2, 0, items, 2, NULL, 2), "scores: NULL");
    BAD(bm3_rank(r, 0, ids, 4, 2, 0, items, 3, scores, 2), "items: room for 3");
    BAD(bm3_rank(r, 0, ids, 4, 2, 0, items, 2, scores, 1), "scores: room for 1");
    BAD(bm3_rank(r, 0, ids, 4, 2, 8, items, 2, scores, 2), "flags: 0x8");
    BAD(bm3_rank(r, USERS, ids, 4, 2, 0, items, 2, scores, 2), "user: 24 found");
    BAD(bm3_rank(r, 0, &(uint32_t){ITEMS}, 1, 2, 0, items, 2, scores, 2), "candidate: 18 found");
    OK(bm3_rank(r, 0, NULL, 0, 2, 0, items, 2, scores, 2));
    CHECK(items[0] == BM3_NO_ITEM && scores[1] == -INFINITY);

    BAD(bm3_rank_for_items(NULL, ids, 1, ids, 4, 2, 0, items, 2, scores, 2), "NULL found");
    BAD(bm3_rank_for_items(r, NULL, 1, ids, 4, 2, 0, items, 2, scores, 2), "history: NULL");
    BAD(bm3_rank_for_items(r, ids, 0, ids, 4, 2, 0, items, 2, scores, 2), "one item at least");
    BAD(bm3_rank_for_items(r, ids, 1, NULL, 4, 2, 0, items, 2, scores, 2), "candidates: NULL");
    BAD(bm3_rank_for_items(r, ids, 1, ids, 4, 2, 0, NULL, 2, scores, 2), "items: NULL");
    BAD(bm3_rank_for_items(r, ids, 1, ids, 4, 2, 0, items, 2, scores, 1), "scores: room for 1");
    BAD(bm3_rank_for_items(r, ids, 1, ids, 4, 2, 8, items, 2, scores, 2), "flags: 0x8");
    BAD(bm3_rank_for_items(r, &(uint32_t){ITEMS}, 1, ids, 4, 2, 0, items, 2, scores, 2),
        "item: 18 found");

    BAD(bm3_scores(NULL, ids, ids, scores, 4), "NULL found");
    BAD(bm3_scores(r, NULL, ids, scores, 4), "users: NULL");
    BAD(bm3_scores(r, ids, NULL, scores, 4), "items: NULL");
    BAD(bm3_scores(r, ids, ids, NULL, 4), "scores: NULL");
    BAD(bm3_scores(r, ids, ids, scores, SIZE_MAX), "users: a length");
    BAD(bm3_scores(r, &(uint32_t){USERS}, ids, scores, 1), "user: 24 found");
    BAD(bm3_scores(r, ids, &(uint32_t){ITEMS}, scores, 1), "item: 18 found");
    OK(bm3_scores(r, NULL, NULL, NULL, 0));
}

static void evaluation(void)
{
    const bm3_recommender *r = recommender;
    size_t lengths[] = {1, 5};
    bm3_metrics metrics[2];
    bm3_dataset *held_out = small_dataset(1), *without = small_dataset(0);

    BAD(bm3_evaluate_split(NULL, held_out, BM3_VALID, lengths, 2, metrics, 2), "NULL found");
    BAD(bm3_evaluate_split(r, NULL, BM3_VALID, lengths, 2, metrics, 2), "bm3_dataset: NULL");
    BAD(bm3_evaluate_split(r, held_out, BM3_TRAIN, lengths, 2, metrics, 2), "split: 0 found");
    BAD(bm3_evaluate_split(r, held_out, 7, lengths, 2, metrics, 2), "split: 7 found");
    BAD(bm3_evaluate_split(r, held_out, BM3_VALID, NULL, 2, metrics, 2), "lengths: NULL");
    BAD(bm3_evaluate_split(r, held_out, BM3_VALID, lengths, 2, NULL, 2), "metrics: NULL");
    BAD(bm3_evaluate_split(r, held_out, BM3_VALID, lengths, 2, metrics, 1), "metrics: room for 1");
    BAD(bm3_evaluate_split(r, held_out, BM3_VALID, lengths, 0, metrics, 0), "lengths: an empty list");
    BAD(bm3_evaluate_split(r, without, BM3_VALID, lengths, 2, metrics, 2), "split: no interaction");
    BAD(bm3_recommender_set_interactions(NULL, held_out), "NULL found");
    BAD(bm3_recommender_set_interactions(recommender, NULL), "bm3_dataset: NULL");
    OK(bm3_dataset_free(&held_out));
    OK(bm3_dataset_free(&without));

    BAD(bm3_evaluate(NULL, ids, ids, 4, lengths, 2, metrics, 2), "NULL found");
    BAD(bm3_evaluate(r, NULL, ids, 4, lengths, 2, metrics, 2), "users: NULL");
    BAD(bm3_evaluate(r, ids, NULL, 4, lengths, 2, metrics, 2), "items: NULL");
    BAD(bm3_evaluate(r, ids, ids, 4, NULL, 2, metrics, 2), "lengths: NULL");
    BAD(bm3_evaluate(r, ids, ids, 4, lengths, 2, NULL, 2), "metrics: NULL");
    BAD(bm3_evaluate(r, ids, ids, 4, lengths, 2, metrics, 1), "metrics: room for 1");
    BAD(bm3_evaluate(r, ids, ids, SIZE_MAX, lengths, 2, metrics, 2), "users: a length");
    BAD(bm3_evaluate(r, ids, ids, 4, lengths, SIZE_MAX, metrics, 2), "lengths: a length");
    BAD(bm3_evaluate(r, ids, ids, 4, lengths, 0, metrics, 0), "lengths: an empty list");
    BAD(bm3_evaluate(r, ids, ids, 4, (size_t[]){5, 1}, 2, metrics, 2), "ascending lengths");
    BAD(bm3_evaluate(r, ids, ids, 4, (size_t[]){0, 1}, 2, metrics, 2), "lengths: 0 found, 1 to 1024");
    BAD(bm3_evaluate(r, ids, ids, 4, (size_t[]){1, 1025}, 2, metrics, 2), "lengths: 1025 found");
    BAD(bm3_evaluate(r, ids, ids, 0, lengths, 2, metrics, 2), "0 pairs found");
    BAD(bm3_evaluate(r, &(uint32_t){USERS}, ids, 1, lengths, 2, metrics, 2), "user: 24 found");
    BAD(bm3_evaluate(r, ids, &(uint32_t){ITEMS}, 1, lengths, 2, metrics, 2), "item: 18 found");
}

static void cold_items(void)
{
    float values[COLUMNS] = {1, 0, 0, 0};
    bm3_features features[2] = {
        {.modality = "text", .values = values, .values_len = COLUMNS, .columns = COLUMNS},
        {.modality = "image", .values = values, .values_len = COLUMNS, .columns = COLUMNS}};
    size_t count = 99;
    uint32_t first;

    BAD(bm3_score_cold_items(NULL, NULL, 0, &count), "NULL found");
    BAD(bm3_score_cold_items(recommender, NULL, 1, &count), "features: NULL");
    BAD(bm3_add_items(NULL, features, 1, &first, &count), "NULL found");
    BAD(bm3_add_items(recommender, NULL, 1, &first, &count), "features: NULL");
    BAD(bm3_add_items(recommender, NULL, 0, &first, &count), "modality text: no features");
    BAD(bm3_add_items(recommender, features, SIZE_MAX, &first, &count), "features: a length");
    BAD(bm3_add_items(recommender, features, 2, &first, &count), "modality image");
    features[0].columns = 2;
    BAD(bm3_add_items(recommender, features, 1, &first, &count), "2 columns found, 4 expected");
    features[0].columns = COLUMNS;
    BAD(bm3_add_items(recommender, features, 1, (uint32_t *)((char *)&first + 1), NULL), "first: an");
    values[0] = INFINITY;
    BAD(bm3_add_items(recommender, features, 1, &first, &count), "inf");
    CHECK(count == 99);
    OK(bm3_recommender_sizes(recommender, NULL, &count, NULL));
    CHECK(count == ITEMS);
}

static void handles_of_another_kind(void)
{
    bm3_dataset_builder *builder = small_builder(0);
    bm3_recommender *disguised = (bm3_recommender *)dataset;
    bm3_dataset *other = (bm3_dataset *)builder;
    bm3_dataset_builder *third = (bm3_dataset_builder *)recommender;

    BAD(bm3_recommend(disguised, ids, 4, NULL, 2, 0, items, 8, scores, 8), "of another kind");
    BAD(bm3_add_items(disguised, NULL, 0, NULL, NULL), "of another kind");
    BAD(bm3_dataset_sizes(other, NULL, NULL), "of another kind");
    BAD(bm3_dataset_builder_at_least(third, 1, 1), "of another kind");
    BAD(bm3_recommend((bm3_recommender *)((char *)recommender + 1), ids, 4, NULL, 2, 0, items, 8,
                      scores, 8),
        "something else");
    BAD(bm3_recommender_free(&disguised), "of another kind");
    BAD(bm3_dataset_free(&other), "of another kind");
    BAD(bm3_dataset_builder_free(&third), "of another kind");
    CHECK(disguised != NULL && other != NULL && third != NULL);
    OK(bm3_dataset_builder_free(&builder));
}

static void handles_freed_twice(void)
{
    OK(bm3_recommender_free(&recommender));
    CHECK(recommender == NULL);
    OK(bm3_recommender_free(&recommender));
    OK(bm3_dataset_free(&dataset));
    CHECK(dataset == NULL);
    OK(bm3_dataset_free(&dataset));
    BAD(bm3_recommend(recommender, ids, 4, NULL, 2, 0, items, 8, scores, 8), "NULL found");
}

int main(void)
{
    errors_and_versions();
    recommender = small_recommender(SETTINGS);
    dataset = small_dataset(1);
    building();
    data_sets();
    training();
    recommenders();
    lists_for_users();
    lists_for_others();
    evaluation();
    cold_items();
    handles_of_another_kind();
    handles_freed_twice();
    return 0;
}
