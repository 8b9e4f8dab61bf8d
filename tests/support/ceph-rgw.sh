#!/usr/bin/env bash
# A real S3 server for tests: one-node Ceph (monitor + in-memory OSD + RADOS gateway) from Debian's packages.
# Versioning, Object Lock (COMPLIANCE really enforced), legal hold, lifecycle, multipart, bucket policy.
#   ceph-rgw.sh install            apt-get the packages (about 20 s, root)
#   ceph-rgw.sh start DIR PORT     start (about 15 s), on PORT and the one below it; prints the endpoint and the keys
#   ceph-rgw.sh stop DIR           stop the processes that start recorded in DIR
set -euo pipefail
cmd=${1:?install|start|stop}; dir=${2:-}; port=${3:-0}; mon=$((port - 1))
case $cmd in
install)
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends ceph-mon ceph-osd ceph-mgr radosgw ceph-common ceph-base >/dev/null ;;
start)
  [ -n "$dir" ] && [ "$port" -gt 1 ] || { echo "a directory and a port are needed" >&2; exit 2; }
  rm -rf "$dir"; mkdir -p "$dir"/{mon,osd,run,log}; dir=$(cd "$dir" && pwd)
  fsid=$(cat /proc/sys/kernel/random/uuid); conf=$dir/ceph.conf
  cat >"$conf" <<C
[global]
fsid=$fsid
mon_host=127.0.0.1:$mon
public_addr=127.0.0.1
cluster_addr=127.0.0.1
auth_cluster_required=cephx
auth_service_required=cephx
auth_client_required=cephx
osd_pool_default_size=1
osd_pool_default_min_size=1
mon_allow_pool_size_one=true
osd_crush_chooseleaf_type=0
osd_pool_default_pg_num=4
osd_pool_default_pgp_num=4
mon_max_pg_per_osd=800
run_dir=$dir/run
admin_socket=$dir/run/\$cluster-\$name-\$pid.asok
log_file=$dir/log/\$name.log
keyring=$dir/keyring
pid_file=$dir/run/\$name.pid
mon_data_avail_crit=1
mon_data_avail_warn=2
[mon.a]
mon_data=$dir/mon
public_addr=127.0.0.1:$mon
[osd.0]
osd_data=$dir/osd
osd_objectstore=memstore
memstore_device_bytes=6442450944
[client.admin]
rgw_frontends=beast endpoint=127.0.0.1:$port
rgw_lc_debug_interval=10
rgw_gc_obj_min_wait=5
rgw_gc_processor_period=5
C
  ceph-authtool --create-keyring "$dir/keyring" --gen-key -n mon. --cap mon 'allow *' >/dev/null
  ceph-authtool "$dir/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' >/dev/null
  ceph-authtool "$dir/keyring" --gen-key -n osd.0 --cap mon 'allow *' --cap osd 'allow *' >/dev/null
  monmaptool --create --add a 127.0.0.1:$mon --fsid "$fsid" "$dir/monmap" >/dev/null
  ceph-mon --mkfs -i a --monmap "$dir/monmap" --keyring "$dir/keyring" -c "$conf"
  ceph-mon -i a -c "$conf"
  for _ in $(seq 20); do timeout 5 ceph -c "$conf" -s >/dev/null 2>&1 && break; sleep 1; done
  ceph-osd -i 0 --mkfs -c "$conf" --osd-uuid "$(cat /proc/sys/kernel/random/uuid)" >/dev/null 2>&1 || true
  timeout 20 ceph -c "$conf" osd create >/dev/null
  ceph-osd -i 0 -c "$conf" >/dev/null 2>&1
  for _ in $(seq 20); do timeout 5 ceph -c "$conf" osd stat 2>/dev/null | grep -q '1 up' && break; sleep 1; done
  setsid radosgw -f -n client.admin -c "$conf" >"$dir/log/rgw.out" 2>&1 </dev/null & echo $! >"$dir/run/rgw.pid"
  for _ in $(seq 60); do curl -s -m 2 "http://127.0.0.1:$port/" >/dev/null && break; sleep 1; done
  timeout 60 radosgw-admin -c "$conf" user create --uid=test --display-name=test --access-key=test-access --secret-key=test-secret >/dev/null 2>&1
  echo "S3_ENDPOINT=http://127.0.0.1:$port S3_ACCESS_KEY=test-access S3_SECRET=test-secret S3_REGION=us-east-1" ;;
stop)
  # The gateway first: one whose storage went before it waits for that for ever.
  for p in "$dir"/run/rgw.pid "$dir"/run/client.admin.pid "$dir"/run/osd.0.pid "$dir"/run/mon.a.pid; do
    [ -f "$p" ] && pid=$(cat "$p") && kill "$pid" 2>/dev/null || continue
    for _ in $(seq 20); do kill -0 "$pid" 2>/dev/null || break; sleep 0.25; done
    kill -9 "$pid" 2>/dev/null || true
  done ;;
esac
