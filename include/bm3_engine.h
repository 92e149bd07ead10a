/*
 * bm3-engine in C: trains BM3, the multimodal recommender, and serves what was trained.
 *
 * Results. A function returns BM3_OK, or what went wrong; `bm3_last_error` then has it in words, for
 * the thread that called. What a function would have written is then not to be read, but for handles,
 * which are NULL. Nothing is printed, unless the library itself is at fault; nothing ends the process,
 * unless memory does not suffice or a file is truncated while it is mapped.
 *
 * Pointers. A NULL pointer is refused, unless a function says what NULL means or the array has no
 * element. Lengths count elements, and are held against what the other arguments imply; ids are held
 * against the model. What cannot be checked is up to the caller: an array has as many elements as its
 * length says, a text ends with NUL and is UTF-8 (a path: what the system takes), a handle is in use
 * or NULL. Arrays are read and written during the call alone, unless a function says otherwise.
 *
 * Handles. Each is made by one function and freed by the one named after it, which sets the caller's
 * pointer to NULL: to free it again does nothing. A handle of another kind is refused.
 *
 * Threads. Functions that take a `const` handle may be called by any number of threads at a time; one
 * that takes a handle to change or to free it must be the only call with that handle while it lasts.
 * Parallel work uses threads of the library's own, which are not there in a process made by `fork`,
 * and which do not let the library be unloaded by `dlclose`. A GPU that a process has opened cannot be
 * used in those that it forks either.
 *
 * Users and items are numbered from 0. Lists are best first, ties by lower number; the same model
 * gives the same lists, to the bit of a score, here, in Rust and by the program `bm3-engine`.
 *
 * Made of the comments of src/capi by `BM3_RECORD_HEADER=1 cargo test --features capi --test capi`.
 */

#ifndef BM3_ENGINE_H
#define BM3_ENGINE_H

#include <stddef.h>
#include <stdint.h>

// Fills a list that is short; the score beside it is minus infinity.
#define BM3_NO_ITEM UINT32_MAX

// A flag: lists have what the user has interacted with in training as well, or the items given.
#define BM3_WITH_SEEN 1

// A flag: training goes on with the run in its directory, to the bits of one that was never stopped;
// it begins where there is none yet.
#define BM3_RESUME 1

// How a call ended; the numbers are the exit codes of the program.
enum bm3_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Done.
    BM3_OK = 0,
    // The machine or the library failed.
    BM3_FAILURE = 1,
    // Something is wrong with what was given: an argument, a setting, a file.
    BM3_BAD_INPUT = 2,
    // Training was stopped by its callback.
    BM3_INTERRUPTED = 130,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum bm3_status bm3_status;
#else
typedef int32_t bm3_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What interactions are for; the numbers are those of the column x_label.
enum bm3_split
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // To train on.
    BM3_TRAIN = 0,
    // To be found while training decides when to stop.
    BM3_VALID = 1,
    // To be found, deciding nothing.
    BM3_TEST = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum bm3_split bm3_split;
#else
typedef int32_t bm3_split;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// A data set: interactions by split, and the features of the items.
typedef struct bm3_dataset bm3_dataset;

// A data set in the making.
typedef struct bm3_dataset_builder bm3_dataset_builder;

// A trained model, ready to answer.
typedef struct bm3_recommender bm3_recommender;

// A modality's features, one row for each item: numbers in memory, or files.
typedef struct bm3_features {
    // The modality's name, as "text".
    const char *modality;
    // The numbers, row after row; NULL where they are in files. They are copied.
    const float *values;
    // How many numbers there are: rows times columns.
    size_t values_len;
    // Numbers in a row; not looked at where they are in files, which say it themselves.
    size_t columns;
    // A .npy file, or what else `--feature NAME=FILE` of the program takes, which is mapped and
    // not copied; NULL where the numbers are in memory.
    const char *files;
} bm3_features;

// Lists of items, one after the other: list n is `items[offsets[n]]` up to, and without,
// `items[offsets[n + 1]]`.
typedef struct bm3_lists {
    // One more than there are lists: ascending, from 0 to `items_len`.
    const size_t *offsets;
    // How many offsets there are.
    size_t offsets_len;
    // The items of all lists.
    const uint32_t *items;
    // How many there are.
    size_t items_len;
} bm3_lists;

// Metrics of lists of one length, means over the users.
typedef struct bm3_metrics {
    // Recall@K.
    double recall;
    // NDCG@K.
    double ndcg;
    // Precision@K.
    double precision;
    // MAP@K.
    double map;
} bm3_metrics;

// What an epoch did.
typedef struct bm3_epoch {
    // Its number, from 1.
    uint64_t epoch;
    // The mean of the loss over its batches.
    double loss;
    // Recall@20 on the validation split; NaN without one.
    double valid_recall;
    // NDCG@20 on the validation split; NaN without one.
    double valid_ndcg;
    // Seconds that it took, its evaluation among them.
    double seconds;
    // 1 where its Recall@20 on the validation split is higher than every earlier epoch's, or where
    // there is no validation split; else 0.
    int32_t best;
} bm3_epoch;

// Is called after each epoch, with the pointer that was given to `bm3_train`; a value that is not 0
// stops the training. It may call functions of this library, must return, and must throw nothing.
// `epoch` is there during the call alone.
typedef int32_t (*bm3_epoch_callback)(const struct bm3_epoch *epoch, void *user);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// What went wrong in this thread's last call that did not end with BM3_OK, in one sentence with what
// was found and what was expected; an empty text where there was none.
//
// The text is the library's, and there until the thread's next call that fails.
const char *bm3_last_error(void);

// The library's version, as "0.1.0".
const char *bm3_version(void);

// Opens a data folder in MMRec's layout.
//
// `settings` may have the settings `modalities`, `split`, `seed` (of the split) and `features` of the
// program's --config files, in TOML, as "modalities = ['text']"; those of training are for
// `bm3_train`, so that one text does for both. NULL is none. `bm3_dataset_free` frees what is put
// into `dataset`.
bm3_status bm3_dataset_open(const char *folder,
                            const char *settings,
                            struct bm3_dataset **dataset);

// Frees a data set and sets the pointer to NULL; NULL, and a pointer to NULL, are left alone.
bm3_status bm3_dataset_free(struct bm3_dataset **dataset);

// How many users and items there are. Each of the two may be NULL.
bm3_status bm3_dataset_sizes(const struct bm3_dataset *dataset, size_t *users, size_t *items);

// What is worth knowing of a data set but need not be changed, such as validation interactions of
// users who have none in training, which are left out: a line for each, an empty text where there is
// nothing.
//
// `warnings` then points to the library's own text, which is there until the data set is freed.
bm3_status bm3_dataset_warnings(const struct bm3_dataset *dataset,
                                const char **warnings);

// Begins a data set of this name from what is in memory.
//
// `bm3_dataset_builder_finish` makes a data set of what is put into `builder`;
// `bm3_dataset_builder_free` frees it where that is not wanted any more.
bm3_status bm3_dataset_builder_new(const char *name, struct bm3_dataset_builder **builder);

// Adds interactions: user `users[n]` with item `items[n]`, for n below `pairs_len`. They are copied.
// `split` is one of `bm3_split`.
bm3_status bm3_dataset_builder_add_pairs(struct bm3_dataset_builder *builder,
                                         int32_t split,
                                         const uint32_t *users,
                                         const uint32_t *items,
                                         size_t pairs_len);

// Adds a modality: a row of features for each item.
bm3_status bm3_dataset_builder_add_features(struct bm3_dataset_builder *builder,
                                            const struct bm3_features *features);

// Counts at least so many users and items, whether they have interactions or not.
bm3_status bm3_dataset_builder_at_least(struct bm3_dataset_builder *builder,
                                        size_t users,
                                        size_t items);

// Makes a data set of what was added, and frees the builder, also where the parts do not make one:
// no training interaction, ids far beyond what so many interactions can need, too few rows of
// features, numbers in them that are not finite. Both pointers are set.
bm3_status bm3_dataset_builder_finish(struct bm3_dataset_builder **builder,
                                      struct bm3_dataset **dataset);

// Frees a builder and sets the pointer to NULL; NULL, and a pointer to NULL, are left alone.
bm3_status bm3_dataset_builder_free(struct bm3_dataset_builder **builder);

// Opens a trained model: `file` is the directory of a run, or a model.safetensors.
//
// `device` is "cpu", a GPU's number as "0", or "auto": GPU 0 where it can be used, else the CPU; NULL
// is the CPU. `bm3_recommender_free` frees what is put into `recommender`.
//
// The file stays mapped until then: a newer one takes its place by being renamed to its name, never
// by being written into it. After `fork` a child opens a model of its own to answer on a GPU.
bm3_status bm3_recommender_open(const char *file,
                                const char *device,
                                struct bm3_recommender **recommender);

// Writes the model into a file as `bm3_recommender_open` and the program read it, whole or not at all.
//
// Items that were added to the recommender are not in the model, and are added again where it is
// opened.
bm3_status bm3_recommender_save(const struct bm3_recommender *recommender,
                                const char *file);

// Frees a recommender and sets the pointer to NULL; NULL, and a pointer to NULL, are left alone.
bm3_status bm3_recommender_free(struct bm3_recommender **recommender);

// How many users and items there are, those that were added among them, and how wide a row is. Each
// of the three may be NULL.
bm3_status bm3_recommender_sizes(const struct bm3_recommender *recommender,
                                 size_t *users,
                                 size_t *items,
                                 size_t *embedding_size);

// The rows of all users, one after the other, each as long as the embedding size: a score is the
// product of a user's row and an item's.
//
// `rows` then points to the library's own numbers, `rows_len` of them in all, which are there until
// the recommender is changed or freed.
bm3_status bm3_user_rows(const struct bm3_recommender *recommender,
                         const float **rows,
                         size_t *rows_len);

// The rows of all items, those that were added among them; otherwise as `bm3_user_rows`.
bm3_status bm3_item_rows(const struct bm3_recommender *recommender,
                         const float **rows,
                         size_t *rows_len);

// The items without training interactions, ascending, those that were added among them.
//
// `items` then points to the library's own numbers, `items_len` of them, which are there until the
// recommender is changed or freed.
bm3_status bm3_cold_items(const struct bm3_recommender *recommender,
                          const uint32_t **items,
                          size_t *items_len);

// The `k` best items for each of some users, 1 to 1024, without those that they have interacted with
// in training (`flags`: BM3_WITH_SEEN leaves them in).
//
// `excluded` has one list for each user of what is left out besides; NULL is none. `items` has room
// for users_len times k items, user after user; `scores` for as many scores, or is NULL with a length
// of 0. Where a user's list is short, BM3_NO_ITEM fills it in `items`, minus infinity in `scores`.
bm3_status bm3_recommend(const struct bm3_recommender *recommender,
                         const uint32_t *users,
                         size_t users_len,
                         const struct bm3_lists *excluded,
                         size_t k,
                         uint32_t flags,
                         uint32_t *items,
                         size_t items_len,
                         float *scores,
                         size_t scores_len);

// The `k` best items for each of some users that the model was not trained on, by what they have
// interacted with: `histories` has a list for each of them, of one item at least.
//
// The items of a user's list are left out (`flags`: BM3_WITH_SEEN leaves them in). All else is as in
// `bm3_recommend`.
bm3_status bm3_recommend_for_items(const struct bm3_recommender *recommender,
                                   const struct bm3_lists *histories,
                                   const struct bm3_lists *excluded,
                                   size_t k,
                                   uint32_t flags,
                                   uint32_t *items,
                                   size_t items_len,
                                   float *scores,
                                   size_t scores_len);

// The `k` items nearest to each of some items, by the cosine of their rows, itself left out.
//
// `items` has room for of_len times k items; all else is as in `bm3_recommend`.
bm3_status bm3_similar_items(const struct bm3_recommender *recommender,
                             const uint32_t *of,
                             size_t of_len,
                             size_t k,
                             uint32_t *items,
                             size_t items_len,
                             float *scores,
                             size_t scores_len);

// The best `k` of some candidates for a user; repeats count once. What the user has interacted with
// in training is left out (`flags`: BM3_WITH_SEEN leaves it in).
//
// `items` has room for k items; all else is as in `bm3_recommend`.
bm3_status bm3_rank(const struct bm3_recommender *recommender,
                    uint32_t user,
                    const uint32_t *candidates,
                    size_t candidates_len,
                    size_t k,
                    uint32_t flags,
                    uint32_t *items,
                    size_t items_len,
                    float *scores,
                    size_t scores_len);

// The scores of pairs of a user and an item, seen or not: the bits that lists have. `users`, `items`
// and `scores` are of length `pairs_len`.
bm3_status bm3_scores(const struct bm3_recommender *recommender,
                      const uint32_t *users,
                      const uint32_t *items,
                      float *scores,
                      size_t pairs_len);

// How well held-out interactions are found: user `users[n]` with item `items[n]`, for n below
// `pairs_len`.
//
// All items are scored for each user, those of training left out. Users without training interactions
// do not count; one pair of another user is needed. `lengths` are those of the lists, 1 to 1024,
// ascending; `metrics` has room for as many elements.
bm3_status bm3_evaluate(const struct bm3_recommender *recommender,
                        const uint32_t *users,
                        const uint32_t *items,
                        size_t pairs_len,
                        const size_t *lengths,
                        size_t lengths_len,
                        struct bm3_metrics *metrics,
                        size_t metrics_len);

// Scores the model's items without training interactions by their features from now on.
//
// `features` are those that the model was trained with, a table for each modality, where they are
// inputs of it (`freeze_features`); trained ones are the model's own, and `features` may be NULL with
// a length of 0. `count`, which may be NULL, is how many such items there are.
bm3_status bm3_score_cold_items(struct bm3_recommender *recommender,
                                const struct bm3_features *features,
                                size_t features_len,
                                size_t *count);

// Adds items by their features: a table for each of the model's modalities, all with as many rows.
//
// The new items follow those there are: `first` is the number of the first, `count` how many they
// are; both may be NULL. A model whose features are inputs of it (`freeze_features`) must have seen
// them by `bm3_score_cold_items` before.
bm3_status bm3_add_items(struct bm3_recommender *recommender,
                         const struct bm3_features *features,
                         size_t features_len,
                         uint32_t *first,
                         size_t *count);

// Trains a model and makes it ready to answer.
//
// `settings` are those of the program's --config files, in TOML, as "layers = 2\nepochs = 50"; NULL
// is the defaults. A key that is none is refused, with the one that may have been meant. Those of a
// data set are for `bm3_dataset_open`. `device` is as in `bm3_recommender_open`. `directory` keeps the
// run as the program does, with its best model and checkpoints, and must not have a run already
// (`flags`: with BM3_RESUME it goes on with it); NULL is in memory alone.
//
// `callback`, which may be NULL, is called after each epoch with `user`: on the thread that called,
// or, where the settings have `threads`, on one of the library's own. When it stops the training
// early, everything is saved and BM3_INTERRUPTED returned. `recommender` then has the model of the
// best epoch so far as well, or is NULL where there is none; `bm3_recommender_free` frees it. Where a
// model that was trained cannot be placed on the device to answer there, that error is returned, and
// `recommender` answers on the CPU.
bm3_status bm3_train(const struct bm3_dataset *dataset,
                     const char *settings,
                     const char *device,
                     const char *directory,
                     uint32_t flags,
                     bm3_epoch_callback callback,
                     void *user,
                     struct bm3_recommender **recommender);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* BM3_ENGINE_H */
