/*
 * bm3-engine in C: trains BM3, the multimodal recommender, and serves trained models.
 *
 * Results. A function returns BM3_OK or the kind of failure; `bm3_last_error` then describes the
 * failure to the thread that called. The outputs of a failed call must not be read, except
 * handles, which are NULL unless the function says otherwise. Nothing is printed, unless the
 * library itself is at fault; nothing ends the process, unless memory runs out or a mapped file is
 * truncated.
 *
 * Pointers. A NULL pointer is refused, unless the function says what NULL means or the array is
 * empty. Lengths count elements and are checked against what the other arguments imply; ids are
 * checked against the model. The caller answers for what cannot be checked: an array has as many
 * elements as its length says, a text ends with NUL and is UTF-8 (a path: what the system takes),
 * a handle is in use or NULL. Arrays are read and written only during the call, unless the
 * function says otherwise.
 *
 * Handles. Each is made by one function and freed by the one named after it, which sets the
 * caller's pointer to NULL, so that freeing it again does nothing. A handle of another kind is
 * refused.
 *
 * Threads. Functions that take a `const` handle may be called by any number of threads at once; a
 * function that changes or frees a handle must be the only call that uses it at the time. Parallel
 * work runs on threads of the library's own, which keep `dlclose` from unloading the library.
 *
 * Processes. A process made by `fork` may use handles that it inherits on the CPU, and make others,
 * on threads of its own, if no call was at work when it was forked. It cannot use a GPU that its
 * parent has opened, or has looked for ("auto"): open models for a GPU after the fork.
 *
 * Users and items are numbered from 0. Lists are best first, ties by lower number; the same model
 * gives the same lists, with the same bits in every score, in C, in Rust and from the program
 * `bm3-engine`.
 *
 * Made of the comments of src/capi by `BM3_RECORD_HEADER=1 cargo test --features capi --test capi`.
 */

#ifndef BM3_ENGINE_H
#define BM3_ENGINE_H

#include <stddef.h>
#include <stdint.h>

// Fills the rest of a short list; the score beside it is minus infinity.
#define BM3_NO_ITEM UINT32_MAX

// A flag: lists may include items that the user interacted with in training, or the items given.
#define BM3_WITH_SEEN 1

// A flag: continues the run in its directory, with the same bits as a run that was never stopped;
// begins one if there is none.
#define BM3_RESUME 1

// The status of a call; the numbers are the exit codes of the program.
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

// The purpose of interactions; the numbers are those of the column x_label.
enum bm3_split
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // To train on.
    BM3_TRAIN = 0,
    // Held out, to decide when training stops.
    BM3_VALID = 1,
    // Held out, deciding nothing.
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

// A data set under construction.
typedef struct bm3_dataset_builder bm3_dataset_builder;

// A trained model, ready to answer.
typedef struct bm3_recommender bm3_recommender;

// A modality's features, one row for each item: numbers in memory, or files.
typedef struct bm3_features {
    // The modality's name, such as "text".
    const char *modality;
    // The numbers, row after row, which are copied; NULL if the features are in files.
    const float *values;
    // How many numbers there are: rows times columns.
    size_t values_len;
    // Numbers in a row; ignored for files, which have their own.
    size_t columns;
    // A .npy file, or whatever else `--feature NAME=FILE` of the program takes, mapped and not
    // copied; NULL if the numbers are in memory.
    const char *files;
} bm3_features;

// Lists of items, one after the other: list n is `items[offsets[n]]` up to, but not including,
// `items[offsets[n + 1]]`.
typedef struct bm3_lists {
    // One offset more than there are lists, ascending from 0 to `items_len`.
    const size_t *offsets;
    // The number of offsets.
    size_t offsets_len;
    // The items of all lists.
    const uint32_t *items;
    // The number of items.
    size_t items_len;
} bm3_lists;

// Metrics of lists of one length: means over the users.
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

// The record of an epoch.
typedef struct bm3_epoch {
    // Its number, from 1.
    uint64_t epoch;
    // The mean of the loss over its batches.
    double loss;
    // Recall@20 on the validation split; NaN without one.
    double valid_recall;
    // NDCG@20 on the validation split; NaN without one.
    double valid_ndcg;
    // Seconds that it took, including its evaluation.
    double seconds;
    // 1 if its Recall@20 on the validation split is higher than every earlier epoch's, or if there
    // is no validation split; else 0.
    int32_t best;
} bm3_epoch;

// Called after each epoch, with the pointer that was given to `bm3_train`; a value other than 0
// stops the training. It may call functions of this library, must return, and must throw nothing.
// `epoch` is valid only during the call.
typedef int32_t (*bm3_epoch_callback)(const struct bm3_epoch *epoch, void *user);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Describes this thread's last failed call in one sentence, with what was found and what was
// expected; an empty text if none has failed.
//
// The text is the library's, and valid until the thread's next call that fails.
const char *bm3_last_error(void);

// The library's version, such as "0.1.0".
const char *bm3_version(void);

// Opens a data folder in MMRec's layout.
//
// `settings` may have the settings `modalities`, `split`, `seed` (of the split) and `features` of
// the program's --config files, in TOML, such as "modalities = ['text']"; NULL means none.
// Settings of training have no effect here, so that one text serves this function and `bm3_train`.
// `bm3_dataset_free` frees the handle written to `dataset`.
bm3_status bm3_dataset_open(const char *folder, const char *settings, struct bm3_dataset **dataset);

// Frees a data set and sets the pointer to NULL; NULL, and a pointer to NULL, are left alone.
bm3_status bm3_dataset_free(struct bm3_dataset **dataset);

// Writes the number of users and the number of items. Each of the two may be NULL.
bm3_status bm3_dataset_sizes(const struct bm3_dataset *dataset, size_t *users, size_t *items);

// Lends the data set's warnings, one per line; an empty text if there are none. They need no action:
// for example, validation interactions are left out if their users have none in training.
//
// `warnings` then points to the library's own text, which stays valid until the data set is freed.
bm3_status bm3_dataset_warnings(const struct bm3_dataset *dataset,
                                const char **warnings);

// Begins a data set of this name from data in memory.
//
// `bm3_dataset_builder_finish` turns the handle written to `builder` into a data set;
// `bm3_dataset_builder_free` frees one that is no longer wanted.
bm3_status bm3_dataset_builder_new(const char *name, struct bm3_dataset_builder **builder);

// Adds interactions: user `users[n]` with item `items[n]`, for n below `pairs_len`. They are copied.
// `split` is one of `bm3_split`.
bm3_status bm3_dataset_builder_add_pairs(struct bm3_dataset_builder *builder,
                                         int32_t split,
                                         const uint32_t *users,
                                         const uint32_t *items,
                                         size_t pairs_len);

// Adds a modality: one row of features per item. If all modalities have the same number of rows, so
// many items count at least, with or without interactions.
bm3_status bm3_dataset_builder_add_features(struct bm3_dataset_builder *builder,
                                            const struct bm3_features *features);

// Counts at least this many users and items, whether or not they have interactions.
bm3_status bm3_dataset_builder_at_least(struct bm3_dataset_builder *builder,
                                        size_t users,
                                        size_t items);

// Makes a data set of what was added, and frees the builder, even on failure: when there is no
// training interaction, ids are far beyond what the number of interactions can need, or features
// have too few rows or are not finite. Both pointers are set.
bm3_status bm3_dataset_builder_finish(struct bm3_dataset_builder **builder,
                                      struct bm3_dataset **dataset);

// Frees a builder and sets the pointer to NULL; NULL, and a pointer to NULL, are left alone.
bm3_status bm3_dataset_builder_free(struct bm3_dataset_builder **builder);

// Opens a trained model: `file` is the directory of a run, or a model.safetensors.
//
// `device` is "cpu", a GPU's number such as "0", or "auto": GPU 0 if it can be used, else the CPU;
// NULL means the CPU. `bm3_recommender_free` frees the handle written to `recommender`.
//
// The file stays mapped until then: replace it by renaming a newer one to its name, never by
// writing into it.
bm3_status bm3_recommender_open(const char *file,
                                const char *device,
                                struct bm3_recommender **recommender);

// Writes the model to a file that `bm3_recommender_open` and the program can read, whole or not at
// all.
//
// Items added to the recommender are not part of the model: add them again after opening it.
bm3_status bm3_recommender_save(const struct bm3_recommender *recommender, const char *file);

// Replaces the training interactions by those of a data set, for example newer ones of the same users
// and items, without training: they are what lists leave out, and part of what rows are made of.
//
// The numbers of users and items must be the model's, without added items. Added items are no longer
// there, and cold items are no longer scored by their features: call `bm3_score_cold_items` and
// `bm3_add_items` again. `bm3_recommender_save` keeps the interactions. If it fails, nothing changes.
bm3_status bm3_recommender_set_interactions(struct bm3_recommender *recommender,
                                            const struct bm3_dataset *dataset);

// Frees a recommender and sets the pointer to NULL; NULL, and a pointer to NULL, are left alone.
bm3_status bm3_recommender_free(struct bm3_recommender **recommender);

// Writes the number of users, the number of items including added ones, and the width of a row.
// Each of the three may be NULL.
bm3_status bm3_recommender_sizes(const struct bm3_recommender *recommender,
                                 size_t *users,
                                 size_t *items,
                                 size_t *embedding_size);

// Lends one line that names the device it answers on; if "auto" passed over a GPU, with the reason.
//
// `device` then points to the library's own text, which stays valid until the recommender is
// changed or freed.
bm3_status bm3_recommender_device(const struct bm3_recommender *recommender, const char **device);

// Lends what is known of the model, as a JSON object: in `identity` its settings (`config`), the
// names and widths of its `modalities`, its numbers of `users` and `items`; the `epoch` it was best
// in, and its metrics then on the validation split (`valid`) and the test split (`test`).
//
// `record` then points to the library's own text, which stays valid until the recommender is
// changed or freed.
bm3_status bm3_recommender_record(const struct bm3_recommender *recommender, const char **record);

// Lends the rows of all users, one after the other, each as long as the embedding size: a score is
// the inner product of a user's row and an item's.
//
// `rows` then points to the library's own numbers, `rows_len` of them in all, which stay valid
// until the recommender is changed or freed.
bm3_status bm3_user_rows(const struct bm3_recommender *recommender,
                         const float **rows,
                         size_t *rows_len);

// Lends the rows of all items, including added ones; otherwise as `bm3_user_rows`.
bm3_status bm3_item_rows(const struct bm3_recommender *recommender,
                         const float **rows,
                         size_t *rows_len);

// Lends the items without training interactions, ascending, including added ones.
//
// `items` then points to the library's own numbers, `items_len` of them, which stay valid until
// the recommender is changed or freed.
bm3_status bm3_cold_items(const struct bm3_recommender *recommender,
                          const uint32_t **items,
                          size_t *items_len);

// Lends the users without training interactions, ascending: their lists come from what was drawn
// when training began, and say nothing about them. Otherwise as `bm3_cold_items`.
bm3_status bm3_cold_users(const struct bm3_recommender *recommender,
                          const uint32_t **users,
                          size_t *users_len);

// Writes the `k` best items (1 to 1024) for each of some users, without the items that the user
// interacted with in training (`flags`: BM3_WITH_SEEN keeps them).
//
// `excluded` has a list of further items to leave out for each user; NULL means none. `items` has
// room for users_len times k items, user after user; `scores` for as many scores, or is NULL with
// a length of 0. If a user's list is short, BM3_NO_ITEM fills it in `items`, and minus infinity in
// `scores`.
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

// Writes the `k` best items for each of some users that the model was not trained on, from the
// items that they interacted with: `histories` has a list of at least one item for each user.
//
// A user's own items are left out (`flags`: BM3_WITH_SEEN keeps them). Otherwise as
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

// Writes the rows of users that the model was not trained on, from the items that they interacted
// with: a score is the inner product of such a row and an item's. `histories` has a list of at least
// one item for each user.
//
// `rows` has room for as many rows as there are lists, one after the other, each as long as the
// embedding size.
bm3_status bm3_rows_for_items(const struct bm3_recommender *recommender,
                              const struct bm3_lists *histories,
                              float *rows,
                              size_t rows_len);

// Writes the `k` items nearest to each of some items, by the cosine of their rows, without the
// item itself.
//
// `items` has room for of_len times k items; otherwise as `bm3_recommend`.
bm3_status bm3_similar_items(const struct bm3_recommender *recommender,
                             const uint32_t *of,
                             size_t of_len,
                             size_t k,
                             uint32_t *items,
                             size_t items_len,
                             float *scores,
                             size_t scores_len);

// Writes the best `k` of some candidates for a user; repeats count once. Items that the user
// interacted with in training are left out (`flags`: BM3_WITH_SEEN keeps them).
//
// `items` has room for k items; otherwise as `bm3_recommend`.
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

// Writes the best `k` of some candidates for a user that the model was not trained on, from the
// items that the user interacted with: `history` has at least one.
//
// The user's own items are left out (`flags`: BM3_WITH_SEEN keeps them). Otherwise as `bm3_rank`.
bm3_status bm3_rank_for_items(const struct bm3_recommender *recommender,
                              const uint32_t *history,
                              size_t history_len,
                              const uint32_t *candidates,
                              size_t candidates_len,
                              size_t k,
                              uint32_t flags,
                              uint32_t *items,
                              size_t items_len,
                              float *scores,
                              size_t scores_len);

// Writes the scores of pairs of a user and an item, seen or not, with the same bits as in lists.
// `users`, `items` and `scores` have `pairs_len` elements each.
bm3_status bm3_scores(const struct bm3_recommender *recommender,
                      const uint32_t *users,
                      const uint32_t *items,
                      float *scores,
                      size_t pairs_len);

// Measures how well held-out interactions are found: user `users[n]` with item `items[n]`, for n
// below `pairs_len`.
//
// All items are scored for each user, except the user's training items. Users without training
// interactions do not count; at least one pair must be of another user. `lengths` are the list
// lengths, 1 to 1024, ascending; `metrics` has room for as many elements.
bm3_status bm3_evaluate(const struct bm3_recommender *recommender,
                        const uint32_t *users,
                        const uint32_t *items,
                        size_t pairs_len,
                        const size_t *lengths,
                        size_t lengths_len,
                        struct bm3_metrics *metrics,
                        size_t metrics_len);

// Measures how well the held-out interactions of a data set are found, such as those of the folder
// that the model was trained on: `split` is BM3_VALID or BM3_TEST. Otherwise as `bm3_evaluate`.
bm3_status bm3_evaluate_split(const struct bm3_recommender *recommender,
                              const struct bm3_dataset *dataset,
                              int32_t split,
                              const size_t *lengths,
                              size_t lengths_len,
                              struct bm3_metrics *metrics,
                              size_t metrics_len);

// Scores the model's items without training interactions from their features from now on.
//
// `features` are those that the model was trained with, a table for each modality, if they are
// inputs (`freeze_features`); a model that trained its features has its own, and `features` may be
// NULL with a length of 0. `count`, which may be NULL, receives the number of such items.
bm3_status bm3_score_cold_items(struct bm3_recommender *recommender,
                                const struct bm3_features *features,
                                size_t features_len,
                                size_t *count);

// Adds items by their features: a table for each of the model's modalities, all with the same
// number of rows.
//
// The new items are numbered after the existing ones: `first` receives the first number, `count`
// how many there are; both may be NULL. If the model's features are inputs (`freeze_features`),
// call `bm3_score_cold_items` first.
bm3_status bm3_add_items(struct bm3_recommender *recommender,
                         const struct bm3_features *features,
                         size_t features_len,
                         uint32_t *first,
                         size_t *count);

// Trains a model and makes it ready to answer.
//
// `settings` are those of the program's --config files, in TOML, such as
// "layers = 2\nepochs = 50"; NULL means the defaults. An unknown key is refused, with a suggestion.
// Settings of a data set have no effect here; see `bm3_dataset_open`. `device` is as in
// `bm3_recommender_open`. `directory` keeps the run as the program does, with its best model and
// checkpoints, and must not have a run already, unless `flags` has BM3_RESUME, which continues it;
// NULL keeps the run in memory only.
//
// `callback`, which may be NULL, is called after each epoch with `user`: on the calling thread or,
// if the settings have `threads` or in a forked process, on one of the library's own. If it stops
// the training early, everything is saved and BM3_INTERRUPTED returned; `recommender` then holds the
// model of the best epoch so far, or NULL if there is none. If the trained model cannot be placed on
// the device to answer there, that error is returned, and `recommender` answers on the CPU.
// `bm3_recommender_free` frees it.
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
