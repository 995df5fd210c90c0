"""A small web shop with its own metrics: some pages over data in memory, and `/metrics`."""

from __future__ import annotations

import time
from dataclasses import dataclass

from flask import Flask, Response, abort, g, jsonify, render_template_string, request
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest


@dataclass(frozen=True, slots=True)
class Product:
    """One product; the price is in cents."""

    name: str
    price: int
    stock: int
    reviews: tuple[str, ...]


PRODUCTS = {
    "kettle": Product("Kettle", 3490, 12, ("Boils fast.", "The lid sticks.")),
    "lamp": Product("Desk lamp", 5900, 3, ("Warm light.",)),
    "notebook": Product("Notebook", 450, 240, ("Good paper.", "Lies flat.", "Too few pages.")),
}

PAGE = """<!doctype html><title>{{ title }}</title><h1>{{ title }}</h1>
<ul>{% for id, line in lines %}<li>{% if id %}<a href="/products/{{ id }}">{{ line }}</a>{% else %}{{ line }}
{% endif %}</li>{% endfor %}</ul><p><a href="/productpage">All products</a></p>"""

REQUESTS = Counter("productpage_requests", "Requests answered.", ["route", "code"])
SECONDS = Histogram("productpage_request_seconds", "Time to answer.", ["route"])
STOCK = Gauge("productpage_stock_items", "Items in stock.", ["product"])

app = Flask(__name__)
for key, product in PRODUCTS.items():
    STOCK.labels(key).set(product.stock)


@app.before_request
def started() -> None:
    """Record the time of the request."""
    g.started = time.perf_counter()


@app.after_request
def counted(response: Response) -> Response:
    """Count the answer under its route's pattern, so that unknown paths do not create series."""
    route = request.url_rule.rule if request.url_rule else "unknown"
    REQUESTS.labels(route, str(response.status_code)).inc()
    SECONDS.labels(route).observe(time.perf_counter() - g.started)
    return response


@app.get("/")
@app.get("/productpage")
def products_page() -> str:
    """Return the list of products."""
    lines = [(key, f"{product.name}: {product.price / 100:.2f}") for key, product in PRODUCTS.items()]
    return render_template_string(PAGE, title="Products", lines=lines)


@app.get("/products/<key>")
def product_page(key: str) -> str:
    """Return one product with its reviews."""
    product = _product(key)
    lines = [(None, f"{product.price / 100:.2f}"), *((None, review) for review in product.reviews)]
    return render_template_string(PAGE, title=product.name, lines=lines)


@app.get("/api/v1/products")
def products() -> Response:
    """Return all products as JSON."""
    return jsonify({key: {"name": p.name, "price": p.price, "stock": p.stock} for key, p in PRODUCTS.items()})


@app.get("/api/v1/products/<key>/reviews")
def reviews(key: str) -> Response:
    """Return one product's reviews as JSON."""
    return jsonify(list(_product(key).reviews))


@app.get("/health")
def health() -> str:
    """Answer that the application is healthy."""
    return "ok\n"


@app.get("/metrics")
def metrics() -> Response:
    """Return the application's metrics in Prometheus's text format."""
    return Response(generate_latest(), content_type=CONTENT_TYPE_LATEST)


def _product(key: str) -> Product:
    product = PRODUCTS.get(key)
    if product is None:
        abort(404)
    return product
