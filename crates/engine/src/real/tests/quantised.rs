//! A quantised language model behind the scheduler: it writes the same whoever is beside it, and says what it is.

use super::*;

fn quantised(dtype: Dtype) -> Loaded {
    let source = FolderSource {
        quantised: true,
        ..FolderSource::new(tiny_folder())
    };
    load(source, ComputeDevice::Cpu, dtype)
}

#[test]
fn it_says_what_it_is() {
    let (plain, quantised) = (tiny(), quantised(Dtype::F32));
    let (plain, quantised) = (plain.description(), quantised.description());
    assert_eq!(
        (plain.weights.as_str(), quantised.weights.as_str()),
        ("", "q8_0")
    );
    assert_ne!(plain.model_digest, quantised.model_digest);
    // An encoder of the plain model makes its image tokens too.
    assert_eq!(plain.encoder_digest, quantised.encoder_digest);
    assert_eq!(plain.dtype, quantised.dtype);
}

/// Every probability has the same bits alone, beside others, and after others whose prompts began alike.
#[tokio::test]
async fn neighbours_change_no_bit() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let loaded = quantised(dtype);
        let tokens = two_images(&loaded).await;
        let ask = |n: usize| {
            let question = answer("what is seen? ".repeat(n % 3 + 1));
            let temperature = if n == 0 { 0.0 } else { 0.8 };
            request(
                &question,
                &tokens[..n % 3],
                decoding(8 + n as u32, temperature, n as u64),
            )
        };
        let requests: Vec<DecodeRequest> = (0..4).map(ask).collect();
        let together = start(&loaded, LIMITS, KV_BYTES_MAX);
        let found = write_four(&together, &requests).await;
        for (request, (text, done)) in requests.iter().zip(found) {
            let by_itself = start(&loaded, LIMITS, KV_BYTES_MAX);
            let (alone, done_alone) = write_text(&by_itself, request.clone()).await;
            assert_eq!(text, alone, "{dtype}");
            assert_eq!(done.tokens, done_alone.tokens, "{dtype}");
            check(request, &loaded, &text, &done);
        }
    }
}
