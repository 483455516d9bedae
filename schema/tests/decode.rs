//! Whatever a log holds is an event or a reason why it is none; nothing panics.

use likewise_schema::{Headers, LikeToggled, Partition, PartitionCount};
use proptest::prelude::*;

fn bytes() -> impl Strategy<Value = Option<Vec<u8>>> {
    let json = "[{}\\[\\]\":,a-zA-Z0-9 .\\\\-]{0,200}".prop_map(String::into_bytes);
    prop::option::of(prop_oneof![json, prop::collection::vec(any::<u8>(), 0..300)])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn any_record_is_an_event_or_is_refused(key in bytes(), value in bytes(), kind in "(LikeToggled\\.v[0-9]{1,3})|\\PC{0,20}") {
        let headers = Headers(vec![("ce_type".into(), kind.into_bytes().into())]);
        let count = PartitionCount::DEFAULT;
        let decoded = LikeToggled::decode(Partition::default(), count, key.as_deref(), value.as_deref(), &headers);
        prop_assert!(decoded.is_err(), "random bytes hold no requestId that equals their key");
    }
}
