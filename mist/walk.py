"""Cursors that walk plans: every stage of a query to the client that serves it, and on."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from math import isfinite

from mist.clients.station import Station, Task
from mist.kernel import Kernel
from mist.network import Link
from mist.plan.draws import Draws
from mist.plan.query import Generation, Grown, Join, Query, Thread
from mist.plan.stages import Pipeline, unfold
from mist.plan.steps import Forking, Generating, Sending, Serving
from mist.request import Stage, Visit
from mist.service import Service


class Walk:
    """Takes queries through ``pipeline``. ``ended`` is called with each that is finished, refused or lost."""

    def __init__(  # noqa: PLR0917
        self,
        kernel: Kernel,
        pipeline: Pipeline,
        draws: Draws,
        services: Mapping[str, Service],
        stations: Mapping[str, Station],
        links: Mapping[str, Link],
        ended: Callable[[Query], None],
    ) -> None:
        self.kernel, self.pipeline, self.draws = kernel, pipeline, draws
        self.services, self.stations, self.links, self.ended = services, stations, links, ended
        self._ids = count()  # of generations
        self._branches = count()  # of contexts that grow apart
        self._only = next(iter(services.values()), None)

    def begin(self, query: Query) -> None:
        """A query is here, now."""
        query.plan(unfold(self.pipeline.stages, self.draws.of(query.id, query.kind.name, query.input)))
        content = Grown(query.content, query.input, next(self._branches))
        self._advance(Thread(query, query.steps, query.input, content))

    def _advance(self, thread: Thread) -> None:
        """The next step of a thread, or its end."""
        query = thread.query
        if query.refused or query.lost or thread.stopped:
            return
        if thread.at == len(thread.steps):
            self._end(thread)
            return
        step = thread.steps[thread.at]
        thread.at += 1
        if type(step) is Generating:
            self._generate(thread, step)
        elif type(step) is Serving:
            self._serve(thread, step)
        elif type(step) is Forking:
            self._fork(thread, step)
        elif type(step) is Sending:
            size = step.size + step.per_token * thread.context
            self.links[step.link].send(size, self._sent, thread, step, self.kernel.now)

    def _end(self, thread: Thread) -> None:
        thread.content.forget_keys()
        if thread.join is not None:
            self._meet(thread.join, thread)
            return
        query, now = thread.query, self.kernel.now
        query.finished = now
        if query.answer is None:
            query.first_token = now
        self.ended(query)

    # generations

    def _generate(self, thread: Thread, step: Generating) -> None:
        query = thread.query
        generation = self._generation(thread, step)
        if thread.join is None and thread.at - 1 == query.answering and step.streams:
            query.answer = generation
        service, thread.doing = self._service(step), generation
        why = service.refusal(generation)
        if why and query.finished >= 0:  # a branch that nobody waits for
            return
        if why:
            query.refused = f"{step.place}: {why}"
            self.ended(query)
            return
        service.submit(generation)

    def _service(self, step: Generating) -> Service:
        service = self._only if step.pool is None else self.services[step.pool]
        assert service is not None
        return service

    def _generation(self, thread: Thread, step: Generating) -> Generation:
        """What an engine is asked for; due when its query's first token is."""
        query, now, kind = thread.query, self.kernel.now, thread.query.kind
        if isfinite(kind.ttft):
            kind = kind._replace(ttft=query.deadline - now)
        content = thread.content
        if step.prompt is not None:
            content = Grown(None, 0, next(self._branches))
        elif not step.keeps:  # what comes next in the context is something else
            content = Grown(content, thread.context, next(self._branches))
        tokens = (thread.context if step.prompt is None else step.prompt) + step.instruction
        output = query.asked if step.output is None else step.output
        generation = Generation(next(self._ids), now, tokens, output, query.priority, content, kind)
        generation.thread, generation.step = thread, step
        generation.visits = query.visits
        return generation

    def generated(self, generation: Generation) -> None:
        """A generation is finished, aborted or lost."""
        thread, step = generation.thread, generation.step
        query = thread.query
        query.preemptions += generation.preemptions
        query.retries += generation.retries
        if generation.lost:
            self._lose(thread, f"{step.place}: {generation.lost}")
            return
        query.prompted += generation.input if generation.first_token >= 0 else generation.computed
        query.generated += generation.output - generation.left
        if step.keeps:
            thread.context += generation.output + step.instruction if step.prompt is None else generation.output
        self._advance(thread)

    # stations and links

    def _serve(self, thread: Thread, step: Serving) -> None:
        tokens = thread.context if step.tokens is None else step.tokens
        done, lost = partial(self._served, thread, step), partial(self._unserved, thread, step)
        task = Task(tokens, step.items, step.seconds or 0.0, self.kernel.now, done, lost)
        self.stations[step.station].submit(task)

    def _unserved(self, thread: Thread, step: Serving, task: Task, why: str) -> None:
        """A station has lost a task."""
        thread.query.retries += task.retries
        self._lose(thread, f"{step.place}: {why}")

    def _lose(self, thread: Thread, why: str) -> None:
        """A query is lost with one of its threads, unless nobody waits for that."""
        query = thread.query
        if not (query.refused or query.lost or query.finished >= 0 or thread.stopped):
            query.lost = why
            self.ended(query)

    def _served(self, thread: Thread, step: Serving, task: Task, started: float) -> None:
        thread.query.visits.append(Visit(step.kind, step.station, task.queued, started, self.kernel.now))
        thread.query.retries += task.retries
        if step.found:
            thread.content.find(step.found, thread.context)
        thread.context += step.added
        self._advance(thread)

    def _sent(self, thread: Thread, step: Sending, began: float) -> None:
        thread.query.visits.append(Visit(Stage.TRANSFER, step.link, began, began, self.kernel.now))
        self._advance(thread)

    # forks

    def _fork(self, thread: Thread, step: Forking) -> None:
        query, join = thread.query, Join(thread, step)
        thread.doing, branches = join, join.branches
        for number, steps in enumerate(step.branches):
            content = Grown(thread.content, thread.context, next(self._branches))
            branches.append(Thread(query, steps, thread.context, content, join, number))
        for branch in branches:
            self._advance(branch)

    def _meet(self, join: Join, branch: Thread) -> None:
        join.ended.append(branch)
        thread, step = join.thread, join.step
        if len(join.ended) != step.needs:
            return
        if step.aborts:
            self._stop(join)
        if step.carries == "one":
            if step.needs == len(step.branches):  # whoever was first, so that designs draw the same
                join.ended.sort(key=lambda ended: ended.number)
            winner = join.ended[step.winner(step.needs)]
            thread.context, thread.content = winner.context, winner.content
        elif step.carries == "all":
            content = Grown(thread.content, join.base, next(self._branches))
            thread.context += sum(ended.context - join.base for ended in join.ended)
            thread.content = content
        self._advance(thread)

    def _stop(self, join: Join) -> None:
        """Call back the branches that have not ended, and theirs."""
        for branch in join.branches:
            if branch in join.ended or branch.stopped:
                continue
            branch.stopped = True
            if type(branch.doing) is Join:
                self._stop(branch.doing)
            elif type(branch.doing) is Generation and branch.doing.finished < 0:
                self._service(branch.doing.step).abort(branch.doing)
