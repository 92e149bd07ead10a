/* Training: what is called back, how it stops, where it is kept, and that it goes on. The argument is
   an empty folder. */
#include "check.h"

struct log {
    uint64_t epochs, stop_after;
    bm3_epoch last;
};

static int32_t after_epoch(const bm3_epoch *epoch, void *user)
{
    struct log *log = user;
    CHECK(epoch->epoch == ++log->epochs);
    CHECK(isfinite(epoch->loss) && epoch->seconds >= 0.0);
    CHECK(epoch->best == 0 || epoch->best == 1);
    log->last = *epoch;
    return epoch->epoch == log->stop_after;
}

static void check_same(const bm3_recommender *left, const bm3_recommender *right)
{
    const float *rows[2];
    size_t count[2];
    OK(bm3_user_rows(left, &rows[0], &count[0]));
    OK(bm3_user_rows(right, &rows[1], &count[1]));
    CHECK(count[0] == count[1] && memcmp(rows[0], rows[1], count[0] * sizeof(float)) == 0);
}

static void epochs_are_told_of(const bm3_dataset *dataset, const bm3_dataset *without)
{
    struct log log = {0};
    bm3_recommender *recommender = NULL;

    OK(bm3_train(dataset, SETTINGS, "cpu", NULL, 0, after_epoch, &log, &recommender));
    CHECK(log.epochs == 6 && log.last.valid_recall > 0.2 && log.last.valid_ndcg > 0.1);
    OK(bm3_recommender_free(&recommender));
    memset(&log, 0, sizeof log);
    OK(bm3_train(without, "epochs = 2\nthreads = 2", NULL, NULL, 0, after_epoch, &log,
                 &recommender));
    CHECK(log.epochs == 2 && isnan(log.last.valid_recall) && isnan(log.last.valid_ndcg));
    OK(bm3_recommender_free(&recommender));
}

static void the_callback_stops(const bm3_dataset *dataset)
{
    struct log log = {.stop_after = 3};
    bm3_recommender *recommender = NULL;
    uint32_t list[3];

    CHECK(bm3_train(dataset, SETTINGS, NULL, NULL, 0, after_epoch, &log, &recommender) ==
          BM3_INTERRUPTED);
    CHECK(strcmp(bm3_last_error(), "training was stopped after epoch 3") == 0);
    CHECK(log.epochs == 3 && recommender != NULL);
    OK(bm3_recommend(recommender, &(uint32_t){0}, 1, NULL, 3, 0, list, 3, NULL, 0));
    OK(bm3_recommender_free(&recommender));
    /* After the last epoch there is nothing to be stopped. */
    log = (struct log){.stop_after = 6};
    OK(bm3_train(dataset, SETTINGS, NULL, NULL, 0, after_epoch, &log, &recommender));
    OK(bm3_recommender_free(&recommender));
}

static void a_run_is_kept_and_goes_on(const bm3_dataset *dataset, const char *folder)
{
    char run[512], file[520];
    struct log log = {.stop_after = 2};
    bm3_recommender *whole = NULL, *recommender = NULL, *opened = NULL;

    snprintf(run, sizeof run, "%s/run", folder);
    snprintf(file, sizeof file, "%s/m.safetensors", folder);
    OK(bm3_train(dataset, SETTINGS, NULL, NULL, 0, NULL, NULL, &whole));
    CHECK(bm3_train(dataset, SETTINGS, NULL, run, 0, after_epoch, &log, &recommender) ==
          BM3_INTERRUPTED);
    OK(bm3_recommender_free(&recommender));
    BAD(bm3_train(dataset, SETTINGS, NULL, run, 0, NULL, NULL, &recommender), run);
    BAD(bm3_train(dataset, SETTINGS, NULL, run, 0, NULL, NULL, &recommender),
        "continue it with BM3_RESUME and directory ");
    CHECK(recommender == NULL);
    log.stop_after = 0;
    OK(bm3_train(dataset, SETTINGS, NULL, run, BM3_RESUME, after_epoch, &log, &recommender));
    CHECK(log.epochs == 6);
    check_same(recommender, whole);
    OK(bm3_recommender_open(run, NULL, &opened));
    check_same(opened, whole);
    OK(bm3_recommender_free(&opened));
    OK(bm3_recommender_save(whole, file));
    OK(bm3_recommender_open(file, "cpu", &opened));
    check_same(opened, whole);
    OK(bm3_recommender_free(&opened));
    OK(bm3_recommender_free(&recommender));
    OK(bm3_recommender_free(&whole));
}

static void settings_are_checked(const bm3_dataset *dataset)
{
    static const char *const WRONG[][2] = {
        {"layer = 2", "settings: line 1: layer: is not a setting; did you mean `layers`?"},
        {"epochs = 2\nlayers = 9", "settings: line 2: layers: 9 found, 0 to 4 expected"},
        {"layers = 'two'", "layers"},
        {"layers = ", "settings: line 1"},
        {"device = 'cpu'", "device found, which is the argument `device` here"},
        {"data = 'x'", "data found, which is the argument `folder` here"},
        {"out = 'x'", "out found, which is the argument `directory` here"},
        {"threads = 0", "threads: 0 found"},
        {"feature_storage = 'stream'", "feature_storage: stream found"},
        {"device_memory = 'much'", "device_memory: `much` found, a size in bytes expected"},
        {"init = '/nowhere.safetensors'", "/nowhere.safetensors"},
        {"epochs = 1 # \xff", "settings: a text that is not UTF-8 found"},
    };
    bm3_recommender *recommender = NULL;
    for (size_t i = 0; i < sizeof WRONG / sizeof *WRONG; i++) {
        BAD(bm3_train(dataset, WRONG[i][0], NULL, NULL, 0, NULL, NULL, &recommender), WRONG[i][1]);
        CHECK(recommender == NULL);
    }
    /* The settings of a data set are not for training, and do no harm. */
    OK(bm3_train(dataset, "epochs = 1\nsplit = '0.8,0.1,0.1'\n[features]\ntext = 'gone-*.npy'",
                 NULL, NULL, 0, NULL, NULL, &recommender));
    OK(bm3_recommender_free(&recommender));
}

static void what_is_left_out_is_said(const bm3_dataset *dataset)
{
    bm3_dataset *other = NULL;
    bm3_dataset_builder *builder = small_builder(0);
    const char *warnings = NULL;

    OK(bm3_dataset_warnings(dataset, &warnings));
    CHECK(strstr(warnings, "left out") == NULL);
    /* Nobody has trained on what this user does. */
    OK(bm3_dataset_builder_add_pairs(builder, BM3_VALID, (uint32_t[]){USERS, USERS},
                                     (uint32_t[]){0, 1}, 2));
    OK(bm3_dataset_builder_finish(&builder, &other));
    OK(bm3_dataset_warnings(other, &warnings));
    CHECK(strstr(warnings, "2 validation and 0 test interactions are left out") != NULL);
    OK(bm3_dataset_free(&other));
}

static void write_file(const char *folder, const char *name, const void *bytes, size_t length)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL && fwrite(bytes, 1, length, file) == length && fclose(file) == 0);
}

static void folders_are_opened(const char *folder)
{
    /* .npy, format version 1.0: a header of 118 bytes, then 3 rows of 2 numbers. */
    unsigned char npy[128 + 24] = "\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', "
                                  "'fortran_order': False, 'shape': (3, 2), }";
    char inter[] = "userID\titemID\tx_label\n0\t0\t0\n0\t1\t0\n1\t1\t0\n1\t2\t1\n";
    char files[512];
    size_t users = 0, items = 0;
    bm3_dataset *dataset = NULL;
    bm3_dataset_builder *builder = NULL;

    memset(npy + strlen((char *)npy + 10) + 10, ' ', 127 - strlen((char *)npy + 10) - 10);
    npy[127] = '\n';
    write_file(folder, "shop.inter", inter, sizeof inter - 1);
    write_file(folder, "text_feat.npy", npy, sizeof npy);
    OK(bm3_dataset_open(folder, NULL, &dataset));
    OK(bm3_dataset_sizes(dataset, &users, &items));
    CHECK(users == 2 && items == 3);
    OK(bm3_dataset_sizes(dataset, NULL, NULL));
    OK(bm3_dataset_free(&dataset));
    OK(bm3_dataset_open(folder, "modalities = 'none'\nlayers = 2\nsplit = [0.5, 0.5, 0]", &dataset));
    OK(bm3_dataset_free(&dataset));
    BAD(bm3_dataset_open(folder, "modalities = ['image']", &dataset), "image");
    BAD(bm3_dataset_open("/nowhere", NULL, &dataset), "/nowhere");

    /* Features of a builder may be in files, too. */
    snprintf(files, sizeof files, "%s/text_f*.npy", folder);
    bm3_features features = {.modality = "text", .files = files};
    OK(bm3_dataset_builder_new("shop", &builder));
    OK(bm3_dataset_builder_add_pairs(builder, BM3_TRAIN, (uint32_t[]){0, 1}, (uint32_t[]){0, 2}, 2));
    OK(bm3_dataset_builder_add_features(builder, &features));
    OK(bm3_dataset_builder_finish(&builder, &dataset));
    OK(bm3_dataset_free(&dataset));
}

int main(int count, char **arguments)
{
    CHECK(count == 2);
    bm3_dataset *dataset = small_dataset(1), *without = small_dataset(0);
    epochs_are_told_of(dataset, without);
    the_callback_stops(dataset);
    /* Without a validation split, so that the best model is that of the last epoch. */
    a_run_is_kept_and_goes_on(without, arguments[1]);
    settings_are_checked(dataset);
    what_is_left_out_is_said(dataset);
    folders_are_opened(arguments[1]);
    OK(bm3_dataset_free(&dataset));
    OK(bm3_dataset_free(&without));
    return 0;
}
