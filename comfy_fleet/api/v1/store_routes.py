"""The part of ``/api/v1``'s table about stores."""

from comfy_fleet.api.endpoint import Endpoint
from comfy_fleet.api.v1 import store_bodies, stores

TABLE = (
    Endpoint(
        method="GET",
        path="/api/v1/stores",
        operation="list_stores",
        handler=stores.list_stores,
        summary="List stores",
        tag="stores",
        answers={200: store_bodies.StoreListAnswer},
        console=True,
    ),
    Endpoint(
        method="POST",
        path="/api/v1/stores",
        operation="add_store",
        handler=stores.add_store,
        summary="Add a store",
        tag="stores",
        body=store_bodies.StoreBody,
        answers={201: store_bodies.StoreAnswer},
        errors=(404, 409, 502),
        console=True,
    ),
    Endpoint(
        method="GET",
        path="/api/v1/stores/{store}",
        operation="get_store",
        handler=stores.get_store,
        summary="Show a store",
        tag="stores",
        answers={200: store_bodies.StoreAnswer},
        console=True,
    ),
    Endpoint(
        method="POST",
        path="/api/v1/stores/{store}/test",
        operation="test_store",
        handler=stores.test_store,
        summary="Try a store",
        tag="stores",
        answers={200: store_bodies.StoreTestAnswer},
        console=True,
    ),
    Endpoint(
        method="DELETE",
        path="/api/v1/stores/{store}",
        operation="remove_store",
        handler=stores.remove_store,
        summary="Remove a store",
        tag="stores",
        answers={204: None},
        console=True,
    ),
)
