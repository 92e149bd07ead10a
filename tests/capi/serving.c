/* Lists, scores, similar and cold items are what their descriptions say. */
#include "check.h"

/* As many epochs as it takes until groups are told apart. */
static const char LONGER[] = "embedding-size = 8\nbatch-size = 32\nlearning-rate = 0.02\n"
                             "epochs = 60\npatience = 100\n";

static float product(const float *left, const float *right, size_t width)
{
    double sum = 0.0;
    for (size_t column = 0; column < width; column++)
        sum += (double)left[column] * right[column];
    return (float)sum;
}

static void lists_have_what_is_best(const bm3_recommender *recommender)
{
    enum { K = 5 };
    size_t users, items, width, user_len, item_len;
    const float *user_rows, *item_rows;
    uint32_t everybody[USERS], list[USERS * K];
    float scores[USERS * K];

    OK(bm3_recommender_sizes(recommender, &users, &items, &width));
    CHECK(users == USERS && items == ITEMS && width == 8);
    OK(bm3_recommender_sizes(recommender, NULL, NULL, NULL));
    OK(bm3_user_rows(recommender, &user_rows, &user_len));
    OK(bm3_item_rows(recommender, &item_rows, &item_len));
    CHECK(user_len == users * width && item_len == items * width);
    for (uint32_t user = 0; user < USERS; user++)
        everybody[user] = user;
    OK(bm3_recommend(recommender, everybody, USERS, NULL, K, 0, list, USERS * K, scores, USERS * K));
    for (uint32_t user = 0; user < USERS; user++) {
        const float *row = user_rows + user * width;
        for (size_t rank = 0; rank < K; rank++) {
            uint32_t item = list[user * K + rank];
            float score = scores[user * K + rank], same;
            CHECK(item < ITEMS && !is_train(user, item));
            CHECK(fabsf(score - product(row, item_rows + item * width, width)) < 1e-5f);
            CHECK(rank == 0 || score <= scores[user * K + rank - 1]);
            OK(bm3_scores(recommender, &user, &item, &same, 1));
            CHECK(memcmp(&same, &score, sizeof same) == 0);
        }
        /* Nothing that is left out of the list is better than its last item. */
        for (uint32_t item = 0; item < ITEMS; item++) {
            int listed = is_train(user, item);
            for (size_t rank = 0; rank < K; rank++)
                listed |= list[user * K + rank] == item;
            CHECK(listed || product(row, item_rows + item * width, width) <=
                                scores[user * K + K - 1] + 1e-5f);
        }
    }
    /* Scores are not asked for; the array of users is where the items go. */
    OK(bm3_recommend(recommender, everybody, 1, NULL, K, 0, everybody, K, NULL, 0));
    CHECK(memcmp(everybody, list, K * sizeof *list) == 0);
    /* Nobody asks. */
    OK(bm3_recommend(recommender, NULL, 0, NULL, K, 0, NULL, 0, NULL, 0));
}

static void what_is_left_out_is_said(const bm3_recommender *recommender)
{
    uint32_t users[] = {3, 4}, plain[2 * 4], list[2 * 4], all[ITEMS], few[ITEMS];
    float scores[ITEMS];
    size_t offsets[] = {0, 2, 2};
    bm3_lists excluded = {.offsets = offsets, .offsets_len = 3, .items = plain, .items_len = 2};
    size_t seen = 0, found = 0;

    OK(bm3_recommend(recommender, users, 2, NULL, 4, 0, plain, 8, NULL, 0));
    OK(bm3_recommend(recommender, users, 2, &excluded, 4, 0, list, 8, NULL, 0));
    CHECK(list[0] == plain[2] && list[1] == plain[3]);
    CHECK(memcmp(list + 4, plain + 4, 4 * sizeof *list) == 0);
    OK(bm3_recommend(recommender, users, 1, NULL, ITEMS, BM3_WITH_SEEN, all, ITEMS, scores, ITEMS));
    for (size_t rank = 0; rank < ITEMS; rank++)
        seen += is_train(3, all[rank]);
    CHECK(seen > 0);
    /* A short list is filled. */
    OK(bm3_recommend(recommender, users, 1, NULL, ITEMS, 0, few, ITEMS, scores, ITEMS));
    for (; found < ITEMS && few[found] != BM3_NO_ITEM; found++)
        CHECK(isfinite(scores[found]));
    CHECK(found == ITEMS - seen);
    for (; found < ITEMS; found++)
        CHECK(few[found] == BM3_NO_ITEM && scores[found] == -INFINITY);
}

static void new_users_are_answered(const bm3_recommender *recommender)
{
    uint32_t history[] = {0, 3, 6, 1, 1}, list[2 * 3], same[3], every[ITEMS];
    float row[8];
    const float *rows;
    double product = 0.0;
    size_t rows_len;
    float scores[2 * 3], same_scores[3];
    size_t offsets[] = {0, 3, 5}, one[] = {0, 3};
    bm3_lists histories = {.offsets = offsets, .offsets_len = 3, .items = history, .items_len = 5};
    uint32_t backwards[] = {6, 0, 3};
    bm3_lists single = {.offsets = one, .offsets_len = 2, .items = backwards, .items_len = 3};
    bm3_lists excluded = {.offsets = one, .offsets_len = 2, .items = list, .items_len = 3};

    OK(bm3_recommend_for_items(recommender, &histories, NULL, 3, 0, list, 6, scores, 6));
    for (size_t rank = 0; rank < 3; rank++) {
        CHECK(list[rank] != 0 && list[rank] != 3 && list[rank] != 6);
        CHECK(list[3 + rank] != 1);
    }
    CHECK(list[0] % GROUPS == 0);
    OK(bm3_recommend_for_items(recommender, &single, NULL, 3, 0, same, 3, same_scores, 3));
    CHECK(memcmp(same, list, sizeof same) == 0);
    CHECK(memcmp(same_scores, scores, sizeof same_scores) == 0);
    OK(bm3_recommend_for_items(recommender, &single, &excluded, 3, 0, same, 3, NULL, 0));
    for (size_t rank = 0; rank < 9; rank++)
        CHECK(same[rank / 3] != list[rank % 3]);
    OK(bm3_recommend_for_items(recommender, &single, NULL, 3, BM3_WITH_SEEN, same, 3, NULL, 0));
    CHECK(same[0] % GROUPS == 0);
    /* Their rows, whose products are the scores. */
    OK(bm3_rows_for_items(recommender, &single, row, 8));
    OK(bm3_item_rows(recommender, &rows, &rows_len));
    for (size_t column = 0; column < 8; column++)
        product += (double)row[column] * (double)rows[8 * list[0] + column];
    CHECK(fabs(product - (double)scores[0]) < 1e-5);
    /* Of all items as candidates, the best are those of the list; the user's own count if wanted. */
    for (uint32_t item = 0; item < ITEMS; item++)
        every[item] = item;
    OK(bm3_rank_for_items(recommender, backwards, 3, every, ITEMS, 3, 0, same, 3, same_scores, 3));
    CHECK(memcmp(same, list, sizeof same) == 0);
    CHECK(memcmp(same_scores, scores, sizeof same_scores) == 0);
    OK(bm3_rank_for_items(recommender, backwards, 3, history, 2, 3, 0, same, 3, NULL, 0));
    CHECK(same[0] == BM3_NO_ITEM);
    OK(bm3_rank_for_items(recommender, backwards, 3, history, 2, 3, BM3_WITH_SEEN, same, 3, NULL, 0));
    CHECK(same[1] != BM3_NO_ITEM && same[2] == BM3_NO_ITEM);
}

static void similar_items_and_candidates_are_sorted(const bm3_recommender *recommender)
{
    uint32_t of[] = {0, 1}, list[2 * 4], candidates[] = {2, 5, 8, 2, 17}, best[5], all[ITEMS];
    float scores[2 * 4], ranked[5];
    size_t place = 0;

    OK(bm3_similar_items(recommender, of, 2, 4, list, 8, scores, 8));
    for (size_t rank = 0; rank < 8; rank++) {
        CHECK(list[rank] != of[rank / 4] && scores[rank] <= 1.0f + 1e-5f);
        CHECK(rank % 4 == 0 || scores[rank] <= scores[rank - 1]);
    }
    CHECK(list[0] % GROUPS == 0 && list[4] % GROUPS == 1);
    OK(bm3_rank(recommender, 2, candidates, 5, 5, BM3_WITH_SEEN, best, 5, ranked, 5));
    CHECK(best[4] == BM3_NO_ITEM && ranked[4] == -INFINITY);
    /* In the order that they have among all items. */
    OK(bm3_recommend(recommender, &(uint32_t){2}, 1, NULL, ITEMS, BM3_WITH_SEEN, all, ITEMS, NULL,
                     0));
    for (size_t rank = 0; rank < ITEMS; rank++)
        if (place < 4 && all[rank] == best[place])
            place++;
    CHECK(place == 4);
    OK(bm3_rank(recommender, 2, candidates, 5, 5, 0, best, 5, NULL, 0));
    for (size_t rank = 0; rank < 5; rank++)
        CHECK(best[rank] == BM3_NO_ITEM || !is_train(2, best[rank]));
}

static void a_model_is_described(const bm3_recommender *recommender)
{
    const char *device = NULL, *record = NULL;
    const uint32_t *users;
    size_t count = 99;

    OK(bm3_recommender_device(recommender, &device));
    CHECK(strncmp(device, "CPU (", 5) == 0 && strchr(device, '\n') == NULL);
    OK(bm3_recommender_record(recommender, &record));
    CHECK(record[0] == '{' && strstr(record, "\"modalities\":[[\"text\",4]]") != NULL);
    CHECK(strstr(record, "\"embedding_size\":8") != NULL);
    OK(bm3_cold_users(recommender, &users, &count));
    CHECK(count == 0);
}

/* The newest interactions are left out of lists; other numbers of items are refused. */
static void interactions_are_replaced(bm3_recommender *recommender)
{
    uint32_t before[4], after[4], users[USERS], items[USERS];
    bm3_dataset *dataset = NULL, *first = small_dataset(0), *larger = NULL;
    bm3_dataset_builder *builder = small_builder(0);

    OK(bm3_recommend(recommender, &(uint32_t){3}, 1, NULL, 4, 0, before, 4, NULL, 0));
    OK(bm3_dataset_builder_add_pairs(builder, BM3_TRAIN, &(uint32_t){3}, before, 1));
    OK(bm3_dataset_builder_finish(&builder, &dataset));
    OK(bm3_recommender_set_interactions(recommender, dataset));
    OK(bm3_recommend(recommender, &(uint32_t){3}, 1, NULL, 4, 0, after, 4, NULL, 0));
    for (size_t rank = 0; rank < 4; rank++)
        CHECK(after[rank] != before[0]);
    OK(bm3_dataset_free(&dataset));
    OK(bm3_recommender_set_interactions(recommender, first));
    OK(bm3_dataset_free(&first));
    OK(bm3_recommend(recommender, &(uint32_t){3}, 1, NULL, 4, 0, after, 4, NULL, 0));
    CHECK(memcmp(after, before, sizeof after) == 0);
    for (uint32_t user = 0; user < USERS; user++) {
        users[user] = user;
        items[user] = ITEMS;
    }
    OK(bm3_dataset_builder_new("larger", &builder));
    OK(bm3_dataset_builder_add_pairs(builder, BM3_TRAIN, users, items, USERS));
    OK(bm3_dataset_builder_finish(&builder, &larger));
    BAD(bm3_recommender_set_interactions(recommender, larger), "24 users and 18 items; larger has 24");
    OK(bm3_dataset_free(&larger));
    OK(bm3_recommend(recommender, &(uint32_t){3}, 1, NULL, 4, 0, after, 4, NULL, 0));
    CHECK(memcmp(after, before, sizeof after) == 0);
}

static void cold_items_come_in(bm3_recommender *recommender)
{
    float values[2 * COLUMNS] = {1.0f, 0.1f, 0.1f, 0.1f, 0.1f, 1.0f, 0.1f, 0.1f};
    bm3_features features = {
        .modality = "text", .values = values, .values_len = 2 * COLUMNS, .columns = COLUMNS};
    size_t count = 99, items, rows_len;
    const float *rows;
    const uint32_t *cold;
    uint32_t first = 99, list[4];

    OK(bm3_score_cold_items(recommender, NULL, 0, &count));
    CHECK(count == 1);
    OK(bm3_score_cold_items(recommender, NULL, 0, NULL));
    OK(bm3_add_items(recommender, &features, 1, &first, &count));
    CHECK(first == ITEMS && count == 2);
    OK(bm3_cold_items(recommender, &cold, &count));
    CHECK(count == 3 && cold[0] == ITEMS - 1 && cold[1] == first && cold[2] == first + 1);
    OK(bm3_add_items(recommender, &features, 1, NULL, NULL));
    OK(bm3_recommender_sizes(recommender, NULL, &items, NULL));
    CHECK(items == ITEMS + 4);
    OK(bm3_item_rows(recommender, &rows, &rows_len));
    CHECK(rows_len == items * 8 && isfinite(rows[rows_len - 1]));
    /* The same features: the same rows. */
    CHECK(memcmp(rows + ITEMS * 8, rows + (ITEMS + 2) * 8, 2 * 8 * sizeof *rows) == 0);
    OK(bm3_rank(recommender, 0, &first, 1, 1, 0, list, 1, NULL, 0));
    CHECK(list[0] == first);
    OK(bm3_similar_items(recommender, &first, 1, 4, list, 4, NULL, 0));
    CHECK(list[0] == first + 2);
}

static void frozen_features_are_given_again(void)
{
    float values[ITEMS * COLUMNS];
    bm3_features features = {
        .modality = "text", .values = values, .values_len = ITEMS * COLUMNS, .columns = COLUMNS};
    char settings[256];
    size_t count = 0;

    snprintf(settings, sizeof settings, "%sfreeze_features = true\n", SETTINGS);
    bm3_recommender *recommender = small_recommender(settings);
    fill_features(values);
    BAD(bm3_add_items(recommender, &features, 1, NULL, NULL), "score_cold_items first");
    BAD(bm3_score_cold_items(recommender, NULL, 0, &count), "no features found");
    values[0] += 1.0f;
    BAD(bm3_score_cold_items(recommender, &features, 1, &count), "not the features that");
    fill_features(values);
    OK(bm3_score_cold_items(recommender, &features, 1, &count));
    CHECK(count == 1);
    features.values_len = COLUMNS;
    OK(bm3_add_items(recommender, &features, 1, NULL, NULL));
    values[1] = NAN;
    BAD(bm3_add_items(recommender, &features, 1, NULL, NULL), "NaN");
    OK(bm3_recommender_free(&recommender));
}

/* Against the lists, by the definition. */
static void metrics_are_those_of_the_lists(const bm3_recommender *recommender)
{
    enum { LONGEST = 4 };
    uint32_t users[USERS * ITEMS], items[USERS * ITEMS], list[LONGEST];
    size_t lengths[] = {1, LONGEST}, count = 0, asked = 0;
    bm3_metrics metrics[2], of_split[2];
    bm3_dataset *dataset = small_dataset(1);
    double recall[2] = {0}, precision[2] = {0};

    for (uint32_t user = 0; user < USERS; user++) {
        size_t wanted = 0, hits[2] = {0};
        for (uint32_t item = 0; item + 1 < ITEMS; item++)
            if (user % GROUPS == item % GROUPS && !is_train(user, item)) {
                users[count] = user;
                items[count++] = item;
                wanted++;
            }
        if (wanted == 0)
            continue;
        asked++;
        OK(bm3_recommend(recommender, &user, 1, NULL, LONGEST, 0, list, LONGEST, NULL, 0));
        for (size_t rank = 0; rank < LONGEST; rank++)
            for (size_t pair = count - wanted; pair < count; pair++)
                if (items[pair] == list[rank]) {
                    hits[0] += rank == 0;
                    hits[1]++;
                }
        for (size_t length = 0; length < 2; length++) {
            recall[length] += (double)hits[length] / (double)wanted;
            precision[length] += (double)hits[length] / (double)lengths[length];
        }
    }
    OK(bm3_evaluate(recommender, users, items, count, lengths, 2, metrics, 2));
    OK(bm3_evaluate_split(recommender, dataset, BM3_VALID, lengths, 2, of_split, 2));
    CHECK(memcmp(of_split, metrics, sizeof metrics) == 0);
    OK(bm3_evaluate_split(recommender, dataset, BM3_TEST, lengths, 2, of_split, 2));
    OK(bm3_dataset_free(&dataset));
    for (size_t length = 0; length < 2; length++) {
        CHECK(fabs(metrics[length].recall - recall[length] / (double)asked) < 1e-12);
        CHECK(fabs(metrics[length].precision - precision[length] / (double)asked) < 1e-12);
        CHECK(metrics[length].ndcg > 0.0 && metrics[length].ndcg <= 1.0);
        CHECK(metrics[length].map > 0.0 && metrics[length].map <= 1.0);
    }
    /* At length 1 these three are the share of users whose first item is wanted. */
    CHECK(metrics[0].ndcg == metrics[0].precision && metrics[0].map == metrics[0].precision);
    CHECK(metrics[1].recall > 0.3);
}

/* AddressSanitizer does not see what the library writes into arrays of this program: guards do. */
static void arrays_are_written_as_far_as_they_go(const bm3_recommender *recommender)
{
    enum { K = 3, LISTS = 2, LENGTH = K * LISTS, GUARD = 64 };
    struct {
        uint32_t before[GUARD], items[LENGTH], between[GUARD];
        float scores[LENGTH];
        uint32_t after[GUARD];
    } room;
    uint32_t ids[] = {0, 1}, *guards[] = {room.before, room.between, room.after};
    size_t offsets[] = {0, 1, 2};
    bm3_lists lists = {.offsets = offsets, .offsets_len = 3, .items = ids, .items_len = 2};

    for (int call = 0; call < 5; call++) {
        size_t written = call == 3 ? K : LENGTH;
        memset(&room, 0xa5, sizeof room);
        if (call == 0)
            OK(bm3_recommend(recommender, ids, LISTS, NULL, K, 0, room.items, LENGTH, room.scores,
                             LENGTH));
        if (call == 1)
            OK(bm3_recommend_for_items(recommender, &lists, NULL, K, 0, room.items, LENGTH,
                                       room.scores, LENGTH));
        if (call == 2)
            OK(bm3_similar_items(recommender, ids, LISTS, K, room.items, LENGTH, room.scores,
                                 LENGTH));
        if (call == 3)
            OK(bm3_rank(recommender, 0, ids, 2, K, 0, room.items, K, room.scores, K));
        if (call == 4) {
            for (size_t place = 0; place < LENGTH; place++)
                room.items[place] = (uint32_t)place;
            OK(bm3_scores(recommender, room.items, room.items, room.scores, LENGTH));
        }
        for (size_t place = 0; place < 3 * GUARD; place++)
            CHECK(guards[place / GUARD][place % GUARD] == 0xa5a5a5a5);
        for (size_t place = 0; place < LENGTH; place++) {
            uint32_t bits;
            memcpy(&bits, &room.scores[place], sizeof bits);
            CHECK((room.items[place] != 0xa5a5a5a5) == (place < written || call == 4));
            CHECK((bits != 0xa5a5a5a5) == (place < written));
        }
    }
}

int main(void)
{
    bm3_recommender *recommender = small_recommender(LONGER);
    lists_have_what_is_best(recommender);
    a_model_is_described(recommender);
    interactions_are_replaced(recommender);
    what_is_left_out_is_said(recommender);
    new_users_are_answered(recommender);
    similar_items_and_candidates_are_sorted(recommender);
    metrics_are_those_of_the_lists(recommender);
    arrays_are_written_as_far_as_they_go(recommender);
    cold_items_come_in(recommender);
    OK(bm3_recommender_free(&recommender));
    frozen_features_are_given_again();
    return 0;
}
