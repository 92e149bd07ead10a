//! Trains on a small shop in memory and asks for lists.

use bm3_engine::data::Modality;
use bm3_engine::{Dataset, Query, Recommender, TrainConfig, Trainer};

fn main() -> Result<(), bm3_engine::Error> {
    // 40 customers and 12 articles; a customer buys articles of her own kind, of which there are 3.
    let (mut users, mut items) = (Vec::new(), Vec::new());
    for user in 0..40 {
        for n in 0..3 {
            users.push(user);
            items.push(user % 3 + 3 * ((user / 3 + n) % 4));
        }
    }
    // What we know of each article: its kind, which a real one's text would reveal.
    let text = |kind| (0..3).map(move |k| if k == kind { 1.0 } else { 0.0 });
    let dataset = Dataset::builder("shop")
        .train(&users, &items)
        .features("text", 3, (0..12).flat_map(|item| text(item % 3)).collect::<Vec<f32>>())
        .build()?;

    let config =
        TrainConfig::builder().embedding_size(16).epochs(200).learning_rate(0.01).build()?;
    let trained = Trainer::new(config).fit(&dataset)?;
    let model = trained.model.expect("was not stopped");
    let mut recommender = Recommender::new(model)?;

    println!("for user 0, who has 0, 3 and 6:  {:?}", recommender.top_k(0, 3)?);
    let visitor = recommender.search(&[Query::items(&[1, 4, 7])], 3)?;
    println!("for a visitor who has 1, 4 and 7: {:?}", visitor.list(0));
    println!("most like article 2:             {:?}", recommender.similar_items(2, 3)?);

    // A new article of kind 1, which nobody has bought yet.
    let features = Modality::new("text", 3, text(1).collect::<Vec<f32>>())?;
    let added = recommender.add_items(&[features])?;
    println!(
        "most like the new article {added:?}: {:?}",
        recommender.similar_items(added.start, 3)?
    );

    recommender.model().save("shop.safetensors")?;
    Ok(())
}
