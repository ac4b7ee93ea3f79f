"""Run a graph of integers, and compare it with a float64 simulation and with the source's embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from checks.audit.faces import Faces, compare_faces
from checks.audit.folded_standardisation import NOTHING_FOLDED, FoldedStandardisation
from checks.audit.graphs.find_layers import GraphLayers
from checks.audit.graphs.graph import Graph, Node, NotUnderstoodError
from checks.audit.graphs.network_from_graph import embedding_size_of
from checks.audit.graphs.onnx_tflite_session import OnnxTfliteSession
from checks.audit.graphs.preprocessing import Preprocessing, to_pixels
from checks.audit.graphs.quantisation import is_dynamic, refuse_reordering
from checks.audit.graphs.run_graph import normalise
from checks.audit.graphs.simulate import Simulation, quantisers
from checks.audit.graphs.wiring import Wiring, label, plain_name
from checks.audit.quantisation import Quantisation
from checks.audit.result import FacesRun, InputRange, QuantisedRun, QuantiserRun
from checks.core.activations import one_thread, run_pytorch
from checks.core.inputs import InputBatch, standardise
from checks.core.metrics import l2_norm
from checks.core.network import BOTTLENECK, EMBEDDINGS, LOGITS
from checks.core.types import Array, Say
from converter.hub.catalog_entry import FIXED, PER_IMAGE
from reference import InceptionResnetV1

_FACES = 2  # that are simulated


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """A node that quantises, on every image: see `QuantiserRun`."""

    integers: Array
    steps: Array
    quantisation: Quantisation
    clips_below: bool


class QuantisedGraph:
    """A graph of integers that is open in its runtime.

    Args:
        graph: The graph.
        layers: Its layers.
        session: Its session.
        preprocessing: How it prepares its images.
        fold: The standardisation that its first convolution holds.
    """

    def __init__(
        self,
        graph: Graph,
        layers: GraphLayers,
        session: OnnxTfliteSession,
        preprocessing: Preprocessing,
        fold: FoldedStandardisation = NOTHING_FOLDED,
    ) -> None:
        self._layers, self._session, self._preprocessing = layers, session, preprocessing
        self._fold = fold
        self._graph, self._wiring = graph, Wiring(graph)
        before = self._wiring.ancestors(layers.input)
        self._quantisers = [node for node in quantisers(graph) if node.output not in before]
        self._names = {name: activation for activation, name in layers.activations.items()}

    def run(
        self,
        batches: Sequence[InputBatch],
        source: InceptionResnetV1,
        trained: str | None,
        faces: Faces | None,
        say: Say,
    ) -> QuantisedRun:
        """Run the graph on the first image of each input and on two faces, and simulate every part.

        Args:
            batches: The inputs.
            source: The network with the source's weights.
            trained: The standardisation in the training of the source; None where it is not known.
            faces: Faces to embed, or None.
            say: Progress callback.

        Raises:
            NotUnderstoodError: A part cannot be simulated.
            SourceError: The runtime refuses the graph, crashes or does not finish.
        """
        names = (*(batch.name for batch in batches), *(("faces",) if faces is not None else ()))
        if is_dynamic(self._graph):
            activations = self._layers.activations
            last = activations.get(LOGITS, activations[BOTTLENECK])
            refuse_reordering(self._wiring, self._layers.input, last)
            compared, cosine = self._compare(faces, source, say), self._cosine(batches, source)
            return QuantisedRun(names, (), 0.0, None, compared, is_dynamic=True, cosine=cosine)
        say("simulating")
        batched = [self._feed_standardised(self._session.fit_images(batch.images[:1])) for batch in batches]
        if faces is not None:
            batched.append(self._feed_faces(faces)[:_FACES])
        fed = np.concatenate(batched)
        measured, embedding = self._simulate(fed)
        shown = slice(len(batches), None) if faces is not None else slice(None)
        return QuantisedRun(
            inputs=names,
            quantisers=tuple(
                self._describe(node, part, shown)
                for node, part in zip(self._quantisers, measured, strict=True)
            ),
            embedding=embedding,
            input_range=self._input_range(trained, faces),
            faces=self._compare(faces, source, say),
            cosine=self._cosine(batches, source),
        )

    def _cosine(self, batches: Sequence[InputBatch], source: InceptionResnetV1) -> float | None:
        """The least cosine with the source's embedding of the first image of each input of many values.

        None if the source's have another size.
        """
        if self._has_other_size(source):
            return None
        cosines = []
        for batch in batches:
            if not batch.few_values:
                fed = self._feed_standardised(self._session.fit_images(batch.images[:1]))
                images = self._fold.apply(self._session.prepare(fed))
                expected = run_pytorch(source, images, (EMBEDDINGS,))[EMBEDDINGS]
                cosines.append(float((self._embed(fed) * expected).sum()))
        return min(cosines)

    def _embed(self, fed: Array) -> Array:
        """The graph's embeddings, (N, E), of length one, which a graph that gives logits has inside."""
        if self._layers.embeddings:
            place = next(n for n, name in enumerate(self._session.outputs) if name != LOGITS)
            return normalise(self._session.run(fed)[place])
        name = self._layers.activations[BOTTLENECK]
        node = next((each for each in self._quantisers if each.inputs[0] == name), None)
        (rows,) = self._session.fetch(fed, [name if node is None else node.output], as_written=False)
        if node is not None and node.quantisation is not None:
            rows = node.quantisation.dequantise(rows)
        return normalise(rows.reshape(len(rows), -1))

    def _compare(self, faces: Faces | None, source: InceptionResnetV1, say: Say) -> FacesRun | None:
        """Embed the faces, and compare with the source's embeddings."""
        if faces is None or self._has_other_size(source):
            return None
        say("embedding the faces")
        images = self._session.fit_images(faces.images)
        return compare_faces(self._embed(self._feed_faces(faces)), source, images, faces.people)

    def _has_other_size(self, source: InceptionResnetV1) -> bool:
        """Return True if the source's embeddings have another size, so that they cannot be compared."""
        return embedding_size_of(self._layers) != source.last_linear.out_features

    def _feed_faces(self, faces: Faces) -> Array:
        """The faces as the graph takes them: pixels, or images standardised as the source was trained."""
        if not self._preprocessing.takes_images:
            return self._preprocessing.to_feed(self._session.fit_images(faces.pixels))
        images = faces.images[..., ::-1] if self._preprocessing.reverses else faces.images
        return self._session.fit_images(images)

    def _feed_standardised(self, images: Array) -> Array:
        if self._preprocessing.takes_standardised:
            return images
        return self._preprocessing.to_feed(to_pixels(images))

    def _simulate(self, fed: Array) -> tuple[list[_Measured], float]:
        """Compare every quantisation with the float64 result of the integers before it."""
        session, layers = self._session, self._layers
        outputs = [*layers.embeddings, *layers.logits]
        names = [node.output for node in self._quantisers]
        arrays = session.fetch(fed, [*outputs, *names], as_written=False)
        known = dict(zip(names, arrays[len(outputs) :], strict=True))
        known[layers.input] = self._prepared(fed)
        simulation = Simulation(self._wiring, known)
        measured = []
        with one_thread(), torch.inference_mode():
            for node in self._quantisers:
                quantisation, integers = node.quantisation, known[node.output]
                assert quantisation is not None
                try:
                    exact = simulation.evaluate(node.inputs[0]).numpy().reshape(integers.shape)
                except (RuntimeError, ValueError) as error:  # shapes that are another network's
                    problem = f"what {label(node)} quantises cannot be simulated"
                    raise NotUnderstoodError(self._graph, problem) from error
                clips = bool((quantisation.zero_point == quantisation.lowest).all())
                measured.append(_Measured(integers, quantisation.steps(exact), quantisation, clips))
            worst = 0.0
            for name, actual in zip(outputs, arrays, strict=False):
                expected = simulation.evaluate(self._last_before(name)).flatten(start_dim=1).numpy()
                rows = actual.reshape(expected.shape)
                if name in layers.embeddings:
                    rows, expected = normalise(rows), normalise(expected)
                pairs = zip(rows, expected, strict=True)
                worst = max(worst, *(l2_norm(row - right) / l2_norm(right) for row, right in pairs))
        return measured, worst

    def _prepared(self, fed: Array) -> Array:
        """The images before the first layer, in the graph's layout."""
        if self._layers.input == self._graph.inputs[0].name:
            ordered = fed if self._graph.channels_last else fed.transpose(0, 3, 1, 2)
            return np.ascontiguousarray(ordered).astype(np.float32)
        (prepared,) = self._session.fetch(fed, [self._layers.input], as_written=True)
        return prepared

    def _last_before(self, output: str) -> str:
        """The tensor that an output is the normalised value of: the last layer's, quantised if it is.

        An output that is only dequantised is its own: its integers are compared as those of every node are.
        """
        if self._wiring.before_quantisation(output) != output:
            return output
        layer = LOGITS if output in self._layers.logits else BOTTLENECK
        name = self._layers.activations[layer]
        quantised = [node.output for node in self._quantisers if node.inputs[0] == name]
        dequantised = [
            node.output for node in self._graph.nodes if node.quantisation and node.inputs[0] in quantised
        ]
        return dequantised[0] if dequantised else name

    def _describe(self, node: Node, part: _Measured, shown: slice) -> QuantiserRun:
        low, high = part.quantisation.lowest, part.quantisation.highest
        within = np.clip(part.steps, low, high)
        actual = part.integers.astype(np.float64)
        beyond = part.steps[shown] > high + 0.5
        if not part.clips_below:
            beyond |= part.steps[shown] < low - 0.5
        layer = self._names.get(node.output) or self._names.get(self._wiring.origin(node.inputs[0]), "")
        return QuantiserRun(
            tensor=plain_name(node.inputs[0]),
            layer=layer,
            values=actual.size,
            other=int((actual != np.rint(within)).sum()),
            excess=float(np.abs(actual - within).max() - 0.5),
            clipped=float(beyond.mean()),
        )

    def _input_range(self, trained: str | None, faces: Faces | None) -> InputRange | None:
        """Compare the range of the first quantisation with the pixels of standardised images."""
        first = next((node for node in self._quantisers if node.inputs[0] == self._layers.input), None)
        if first is None or first.quantisation is None or trained not in (FIXED, PER_IMAGE):
            return None
        lowest, highest = map(float, self._fold.apply(np.array(first.quantisation.interval)))
        if trained == FIXED:
            samples = {"the 256 values of a pixel": standardise(np.arange(256.0))}
        else:  # every image gets the mean 0 and the standard deviation 1, but no distribution
            samples = {"a normal distribution": _normal_quantiles()}
            if faces is not None:  # they may all be alike, as those of the calibration were
                samples[f"the pixels of {len(faces.pixels)} faces"] = faces.images
        half = (highest - lowest) / 510  # of a step
        clipped = {
            basis: float(np.mean((pixels < lowest - half) | (pixels > highest + half)))
            for basis, pixels in samples.items()
        }
        basis = max(clipped, key=lambda each: clipped[each])
        least = min(float(pixels.min()) for pixels in samples.values())
        most = max(float(pixels.max()) for pixels in samples.values())
        unused = 1.0 - max(min(highest, most) - max(lowest, least), 0.0) / (highest - lowest)
        return InputRange(lowest, highest, trained, basis, clipped[basis], unused)


def _normal_quantiles() -> Array:
    """Quantiles of the standard normal distribution, so many that the farthest are at 4."""
    shares = torch.linspace(3.2e-5, 1 - 3.2e-5, 1 << 14, dtype=torch.float64)
    return np.asarray(torch.special.ndtri(shares).numpy())
