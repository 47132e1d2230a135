// The mesh as a graph: those who connect on the left, what they connect to on the right.

import { byId, element, glyph, shape, show } from './dom.js';
import { KINDS, UNKNOWN, ago, bytes, client, count, flowKey, flowTexts, health, matches, serviceTexts, hostTexts } from './model.js';

const ROW = 30;
const HEAD = 30;
const GAP = 12;
const TOP = 34;
const LEFT = 290;
const RIGHT = 330;
// What can be told apart on one page; the search leads to the rest.
const MAX_ROWS = 60;
const MAX_EDGES = 300;
// Hosts that are named one by one.
const MAX_NAMED = 8;

let chosen = null;

export function draw(state, { search, kinds, grouping }) {
  const byHost = grouping === 'host';
  const wanted = state.flows.filter((flow) => kinds.has(flow.kind) && matches(search, flowTexts(flow)));
  const all = merged(wanted, byHost);
  const edges = all.slice(0, MAX_EDGES);
  const sources = sourceGroups(state, edges, search, byHost);
  const targets = targetRows(state, edges, search, byHost);
  note(state, all.length - edges.length, wanted, sources, targets);
  const canvas = byId('graph');
  if (!sources.shown.length && !targets.shown.length) {
    show(canvas, element('p', { class: 'empty' }, search ? 'Nothing has this name.' : 'No host has joined yet: `murmesh token create` makes a token for one.'));
    return;
  }
  const width = Math.max(canvas.clientWidth, 820);
  const left = placeSources(sources.shown);
  const right = placeTargets(targets.shown, edges, left.rows);
  const visible = edges.filter((edge) => left.rows.has(edge.from) && right.rows.has(edge.to));
  if (!visible.some((edge) => edge.key === chosen)) chosen = null;
  const height = Math.max(left.end, right.end) + 14;
  show(canvas, shape('svg', { width, height, viewBox: `0 0 ${width} ${height}`, class: chosen ? 'dimmed' : undefined, role: 'group', 'aria-label': 'Graph of connections' },
    shape('text', { x: 18, y: 22, class: 'heading' }, 'Connect'),
    shape('text', { x: width - RIGHT + 4, y: 22, class: 'heading' }, byHost ? 'To hosts' : 'To services'),
    left.groups.map((group) => drawGroup(group)),
    right.list.map((row) => drawTarget(row, width - RIGHT)),
    drawEdges(visible, left.rows, right.rows, width, state)));
  detail(visible.find((edge) => edge.key === chosen), state);
}

// The next connection of the graph, or the one before.
export function step(by) {
  const all = [...byId('graph').querySelectorAll('.edge')];
  if (!all.length) return;
  const at = all.findIndex((edge) => edge === document.activeElement || edge.dataset.key === chosen);
  const next = all[at < 0 ? (by > 0 ? 0 : all.length - 1) : (at + by + all.length) % all.length];
  next.focus();
  next.dispatchEvent(new Event('click'));
}

const sourceKey = (flow, byHost) => `${flow.host ?? ''}|${byHost && flow.host ? '' : client(flow)}`;
const targetKey = (flow, byHost) => (byHost ? flow.to_host ?? 'outside' : flow.to);

function merged(flows, byHost) {
  const edges = new Map();
  for (const flow of flows) {
    const from = sourceKey(flow, byHost);
    const to = targetKey(flow, byHost);
    const key = `${flow.kind}|${from}|${to}`;
    if (!edges.has(key)) edges.set(key, { key, from, to, kind: flow.kind, flows: [], connections: 0, open: 0, last: 0 });
    const edge = edges.get(key);
    edge.flows.push(flow);
    edge.connections += flow.connections ?? 0;
    edge.open += flow.open;
    edge.last = Math.max(edge.last, flow.last_seen);
  }
  return [...edges.values()];
}

function sourceGroups(state, edges, search, byHost) {
  const groups = new Map();
  const group = (host) => {
    if (!groups.has(host)) groups.set(host, { host, rows: new Map(), busy: false });
    return groups.get(host);
  };
  for (const edge of edges) {
    const flow = edge.flows[0];
    const one = group(flow.host);
    one.busy = true;
    one.rows.set(edge.from, byHost && flow.host ? 'any workload' : label(flow));
  }
  for (const host of state.hosts) if (matches(search, hostTexts(host))) group(host.node);
  const known = new Map(state.hosts.map((host) => [host.node, host]));
  const all = [...groups.values()].map((one) => ({ ...one, known: known.get(one.host) }));
  all.sort((one, other) => other.busy - one.busy || (one.host ?? '~').localeCompare(other.host ?? '~'));
  let [room, hidden] = [MAX_ROWS, 0];
  const shown = all.filter((one) => {
    const rows = [...one.rows].slice(0, Math.max(0, room - 1));
    hidden += one.rows.size - rows.length + (room > 0 ? 0 : 1);
    one.rows = new Map(rows);
    room -= 1 + rows.length;
    return room >= 0;
  });
  return { shown, hidden };
}

const label = (flow) => (flow.workload ? flow.workload : flow.host ? `${UNKNOWN} (${flow.address || 'this host'})` : flow.address || UNKNOWN);

function targetRows(state, edges, search, byHost) {
  const rows = new Map();
  const busy = new Set(edges.map((edge) => edge.to));
  const add = (key, row) => rows.set(key, { key, busy: busy.has(key), ...row });
  if (byHost) {
    for (const host of state.hosts) {
      if (!busy.has(host.node) && !matches(search, hostTexts(host))) continue;
      const own = state.services.filter((service) => service.instances.some((instance) => instance.host === host.node));
      add(host.node, { title: host.node, about: count(own.length, 'service'), bad: host.connected ? null : 'not connected', sort: host.node });
    }
  } else {
    for (const service of state.services) {
      if (!busy.has(service.id) && !matches(search, serviceTexts(service))) continue;
      const how = health(service);
      const hosts = service.instances.map((instance) => instance.host).join(', ');
      const where = service.named ? `:${service.port} on ${hosts}` : 'no name';
      add(service.id, { title: service.id, about: where, mode: service.mode, bad: how.rank === 2 ? null : how.words, sort: (service.named ? '0' : '1') + service.id });
    }
  }
  for (const edge of edges) {
    if (!rows.has(edge.to)) add(edge.to, { title: edge.to, about: 'outside the mesh', bad: null, outside: true, sort: `2${edge.to}` });
  }
  const all = [...rows.values()].sort((one, other) => other.busy - one.busy || Boolean(other.bad) - Boolean(one.bad) || one.sort.localeCompare(other.sort));
  return { shown: all.slice(0, MAX_ROWS), hidden: Math.max(0, all.length - MAX_ROWS) };
}

function placeSources(groups) {
  const rows = new Map();
  let y = TOP;
  const placed = groups.map((group) => {
    const top = y;
    y += HEAD;
    const own = [...group.rows].map(([key, text]) => {
      rows.set(key, y + ROW / 2);
      y += ROW;
      return { text, y: y - ROW / 2 };
    });
    const bottom = y + (own.length ? 5 : 0);
    y = bottom + GAP;
    return { ...group, own, top, height: bottom - top };
  });
  return { groups: placed, rows, end: y };
}

// Services stand beside those who connect to them, as far as they can.
function placeTargets(targets, edges, sources) {
  const middle = new Map();
  for (const row of targets) {
    const from = edges.filter((edge) => edge.to === row.key && sources.has(edge.from)).map((edge) => sources.get(edge.from));
    middle.set(row.key, from.length ? from.reduce((sum, y) => sum + y, 0) / from.length : Infinity);
  }
  const order = (row) => (Number.isFinite(middle.get(row.key)) ? middle.get(row.key) : 1e9);
  const list = [...targets].sort((one, other) => order(one) - order(other));
  const rows = new Map();
  let y = TOP;
  const placed = list.map((row) => {
    const top = y;
    y += 44 + GAP - 4;
    rows.set(row.key, top + 22);
    return { ...row, top };
  });
  return { list: placed, rows, end: y };
}

function drawGroup({ host, known, own, top, height, busy }) {
  const bad = known && !known.connected;
  const title = host === null ? 'Outside the mesh' : host;
  const about = bad ? 'not connected' : known?.drained ? 'drained' : own.length ? '' : 'no connection seen';
  return shape('g', { class: `${bad ? 'bad' : ''} ${busy || bad ? '' : 'idle'}` },
    shape('rect', { class: 'box', x: 14, y: top, width: LEFT - 14, height, rx: 9 }),
    shape('text', { x: 27, y: top + 20, class: 'title' }, clipped(title, 20)),
    shape('text', { x: LEFT - 13, y: top + 20, class: 'soft', 'text-anchor': 'end' }, about),
    own.map(({ text, y }) => shape('g', {},
      shape('rect', { class: 'node', x: 22, y: y - ROW / 2 + 2, width: LEFT - 30, height: ROW - 4, rx: 6 }),
      shape('text', { x: 32, y: y + 4.5 }, clipped(text, 32), shape('title', {}, text)))));
}

function drawTarget({ title, about, mode, bad, busy, top }, x) {
  const right = x + RIGHT - 26;
  return shape('g', { class: `${bad ? 'bad' : ''} ${busy || bad ? '' : 'idle'}` },
    shape('rect', { class: 'node', x, y: top, width: RIGHT - 14, height: 44, rx: 9 }),
    shape('text', { x: x + 13, y: top + 19, class: 'title' }, clipped(title, mode ? 26 : 38), shape('title', {}, title)),
    mode ? shape('text', { x: right, y: top + 19, class: 'soft', 'text-anchor': 'end' }, mode) : null,
    shape('text', { x: x + 13, y: top + 36, class: 'soft' }, clipped(bad ? `${about}: ${bad}` : about, 46), shape('title', {}, about)),
    bad ? glyph('bad', { class: 'glyph kind-denied', transform: `translate(${right - 12} ${top + 23})` }) : null);
}

function drawEdges(edges, sources, targets, width, state) {
  const [outgoing, incoming] = [ports(edges, 'from', 'to', targets), ports(edges, 'to', 'from', sources)];
  const signs = new Map();
  return edges.map((edge, index) => {
    const [x1, x2] = [LEFT - 8, width - RIGHT];
    const y1 = sources.get(edge.from) + outgoing(edge, ROW - 10);
    const y2 = targets.get(edge.to) + incoming(edge, 30);
    const bend = (x2 - x1) * 0.45;
    const path = `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
    // Signs stand where the lines begin, before they cross, and not one on the other.
    const sign = signs.get(edge.from) ?? 0;
    signs.set(edge.from, sign + 1);
    const at = 0.13 + (sign % 6) * 0.085;
    const [x, y] = [curve(at, x1, x1 + bend, x2 - bend, x2), curve(at, y1, y1, y2, y2)];
    const weight = Math.min(4, 1 + Math.floor(Math.log10(Math.max(1, edge.connections))));
    const choose = () => {
      chosen = edge.key;
      byId('graph').querySelectorAll('.edge').forEach((node) => node.classList.toggle('chosen', node.dataset.key === chosen));
      byId('graph').querySelector('svg').classList.add('dimmed');
      detail(edge, state);
    };
    const is = edge.key === chosen ? ' chosen' : '';
    return shape('g', { class: `edge kind-${edge.kind} weight-${weight}${is}`, tabindex: is || (!chosen && index === 0) ? 0 : -1, role: 'img', 'data-key': edge.key, 'aria-label': sentence(edge), onclick: choose, onfocus: choose },
      shape('title', {}, sentence(edge)),
      shape('path', { class: 'reach', d: path }),
      shape('path', { class: 'line', d: path }),
      shape('path', { class: 'glyph', d: `M${x2 - 8} ${y2 - 4.5}L${x2 - 1} ${y2}L${x2 - 8} ${y2 + 4.5}` }),
      shape('circle', { class: 'badge', cx: x, cy: y, r: 10 }),
      glyph(edge.kind, { transform: `translate(${x - 8} ${y - 8})` }));
  });
}

// Where on a box the lines of its connections end, in the order in which they do not cross.
function ports(edges, end, other, others) {
  const all = new Map();
  for (const edge of edges) all.set(edge[end], [...(all.get(edge[end]) ?? []), edge]);
  for (const list of all.values()) list.sort((one, two) => others.get(one[other]) - others.get(two[other]));
  return (edge, room) => {
    const list = all.get(edge[end]);
    const distance = Math.min(9, room / Math.max(1, list.length - 1));
    return (list.indexOf(edge) - (list.length - 1) / 2) * distance;
  };
}

const curve = (t, a, b, c, d) => (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t * t * c + t ** 3 * d;
const clipped = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

function sentence({ flows, kind, to, connections, open }) {
  const [flow] = flows;
  const who = flow.host === null ? client(flow) : flow.workload ? `${flow.workload} on ${flow.host}` : flow.host;
  const where = flow.to_host && !to.startsWith(flow.to_host) ? ` on ${[...new Set(flows.map((one) => one.to_host))].join(', ')}` : '';
  const many = connections ? `, ${count(connections, 'connection')}${open ? `, ${open} open` : ''}` : '';
  return `${who} to ${to}${where}: ${KINDS[kind]}${many}`;
}

function detail(edge, state) {
  const place = byId('graph-detail');
  if (!edge) { show(place); return; }
  const sum = (field) => edge.flows.reduce((all, flow) => all + flow[field], 0);
  const rules = [...new Set(edge.flows.map((flow) => flow.rule).filter(Boolean))];
  const moved = sum('sent') + sum('received') ? `; ${bytes(sum('sent'))} sent, ${bytes(sum('received'))} received` : '';
  const failed = sum('failed') ? `; ${sum('failed')} failed` : '';
  const by = rules.length ? `; rule ${rules.join(', ')}` : '';
  const why = {
    plaintext: ' Give this host an agent, or make the service strict: then it is refused.',
    unavailable: ' The service had no healthy instance.',
  }[edge.kind] ?? '';
  show(place, element('span', {}, `${sentence(edge)}${moved}${failed}${by}; last seen ${ago(state.now - edge.last)}.${why}`));
}

// Whose connections are not shown, by the name of the other server that knows of them, if one does.
function untold(state) {
  const elsewhere = new Map();
  for (const host of state.hosts.filter(({ connected, reports }) => connected && !reports)) {
    const server = host.servers.includes(state.server) ? undefined : host.servers[0];
    elsewhere.set(server, [...(elsewhere.get(server) ?? []), host.node]);
  }
  return [...elsewhere].map(([server, nodes]) => {
    const named = nodes.slice(0, MAX_NAMED).join(', ');
    const names = nodes.length > MAX_NAMED ? `${named} and ${nodes.length - MAX_NAMED} more` : named;
    return server
      ? `Whom ${names} connect to is known to ${server}, which has not told this server; murmesh ui there shows it.`
      : `Whom ${names} connect to was not told yet.`;
  });
}

function note(state, undrawn, wanted, sources, targets) {
  const parts = untold(state);
  const hidden = sources.hidden + targets.hidden + undrawn;
  if (hidden) parts.push(`${hidden.toLocaleString('en')} more hosts, services or lines are not drawn: search for them, or show hosts only.`);
  if (state.left_out) parts.push(`${count(state.left_out, 'flow')} that were used longest ago are left out.`);
  if (!wanted.length && !hidden) parts.push('No connection was seen yet.');
  byId('graph-note').textContent = parts.join(' ');
}
