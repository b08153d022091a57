//! Models on their way into a bucket and out of it, and what is not taken on the way.

use super::*;

async fn pushed() -> (Bucket, tempfile::TempDir, Sum) {
    let model = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir(model.path().join("t")).expect("makes");
    fs::write(model.path().join("model.safetensors"), vec![7; 3 << 20]).expect("writes");
    fs::write(model.path().join("t/tokenizer.json"), "{}").expect("writes");
    let sums = Sums::of_folder(model.path()).expect("lists");
    let bucket = Bucket::in_memory();
    push(&bucket, "models/m", &sums, model.path())
        .await
        .expect("is sent");
    (bucket, model, sums.sum())
}

async fn refused(bucket: &Bucket, folder: &Path, sum: Sum) -> String {
    let refused = fetch(bucket, "models/m", folder, sum).await;
    refused.expect_err("is not what was asked for").to_string()
}

#[tokio::test]
async fn a_model_is_fetched_as_it_was_sent() {
    let (bucket, model, sum) = pushed().await;
    let folder = model.path().join(".fetched");
    let fetched = fetch(&bucket, "/models/m/", &folder, sum).await;
    assert_eq!(fetched.expect("is there").sum(), sum);
    let read = Sums::read(&folder, Some(sum)).expect("has its list");
    read.check(&folder).expect("is whole");
    // Once more: what is right stays, what is not is fetched anew.
    fs::write(folder.join("t/tokenizer.json"), "[]").expect("writes");
    fetch(&bucket, "models/m", &folder, sum)
        .await
        .expect("is there");
    read.check(&folder).expect("is whole again");
}

#[tokio::test]
async fn another_digest_leaves_no_file() {
    let (bucket, model, sum) = pushed().await;
    let folder = model.path().join(".fetched");
    let said = refused(&bucket, &folder, Sum::of(b"another")).await;
    assert!(
        said.contains("models/m/SHA256SUMS: the list of the model's files has"),
        "{said}"
    );
    assert!(
        !folder.exists(),
        "nothing is fetched by a list that is not the one"
    );
    let other = stream::iter([Ok(Bytes::from_static(b"other weights"))]);
    let put = bucket.write("models/m/model.safetensors", other).await;
    put.expect("is sent");
    let said = refused(&bucket, &folder, sum).await;
    assert!(
        said.starts_with("models/m/model.safetensors has the SHA-256"),
        "{said}"
    );
    let left = fs::read_dir(&folder).expect("was made").count();
    assert_eq!(left, 0, "a file of a wrong digest is there");
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let model = tempfile::tempdir().expect("a temporary folder");
    let said = refused(&Bucket::in_memory(), model.path(), Sum::of(b"x")).await;
    assert!(
        said.starts_with("the bucket has no models/m/SHA256SUMS"),
        "{said}"
    );
}
